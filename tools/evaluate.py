#!/usr/bin/env python3
"""Evaluates a checkpoint: perplexity of prepared datasets, and tasks of lm-evaluation-harness."""

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from card_scale.argument_types import not_negative, output_file, positive
from card_scale.cli import run_tool
from card_scale.files import write_atomically
from card_scale.objectives.decoders import METHODS


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Exit codes: 0 done, 2 command line, 3 a task that does not exist, 4 data, 5 checkpoint unusable.",
    )
    parser.add_argument("checkpoint", type=Path, help="directory, e.g. runs/quickstart/checkpoints/iter_0000200")
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        type=Path,
        help="dataset of tools/data.py build; may be given several times",
    )
    parser.add_argument("--split", choices=("train", "validation"), default="validation", help="(default: validation)")
    parser.add_argument("--samples", type=positive, help="of each dataset, chosen as in training (default: all)")
    parser.add_argument(
        "--tasks",
        type=lambda names: [name.strip() for name in names.split(",")],
        default=[],
        help="names, separated by commas",
    )
    parser.add_argument("--include-path", type=Path, help="directory of task files (YAML) of your own")
    parser.add_argument("--few-shot", type=not_negative, help="examples before each question (default: the task's)")
    parser.add_argument("--limit", type=positive, help="questions of each task (default: all)")
    parser.add_argument("--method", choices=METHODS, help="of generation (default: by the checkpoint's objective)")
    parser.add_argument("--batch", type=positive, default=16, help="sequences a pass (default: 16)")
    parser.add_argument(
        "--draws",
        type=positive,
        default=32,
        help="of a bound's estimate, where the likelihood is not exact (default: 32)",
    )
    parser.add_argument("--device", help="(default: a GPU where there is one)")
    parser.add_argument("--ema", action="store_true", help="the moving average of the weights (optimizer.ema)")
    parser.add_argument("--output", type=output_file, help="write all results as JSON")
    arguments = parser.parse_args()
    if arguments.include_path and not arguments.include_path.is_dir():
        parser.error(f"--include-path {arguments.include_path}: there is no such directory")
    if not arguments.data and not arguments.tasks:
        parser.error("nothing to evaluate: give --data or --tasks")
    if arguments.tasks and importlib.util.find_spec("lm_eval") is None:
        parser.error("--tasks needs lm-evaluation-harness: pip install -c constraints.txt -e .[evaluation]")
    return arguments


def main() -> None:
    """Run the command."""
    arguments = parse()
    # torch only now: --help must answer at once.
    import torch

    from card_scale.generation import load
    from card_scale.generation.perplexity import dataset_perplexity, open_stream

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = load(arguments.checkpoint, device, ema=arguments.ema)
    for dataset in arguments.data:
        open_stream(model, dataset, arguments.split)  # all are refused before any is evaluated
    results: dict[str, Any] = {"checkpoint": str(arguments.checkpoint), "datasets": {}, "tasks": {}}
    for dataset in arguments.data:
        for found in dataset_perplexity(
            model, dataset, arguments.split, samples=arguments.samples, batch=arguments.batch, draws=arguments.draws
        ):
            if sys.stderr.isatty():
                print(f"\r{dataset}: {found.samples} samples", end="", file=sys.stderr, flush=True)
        sign = "<=" if found.is_bound else "="
        error = f" ± {found.standard_error:.4f}" if found.is_bound and arguments.draws > 1 else ""
        print(
            f"{dataset} ({arguments.split}, {found.samples} samples, {found.tokens} tokens): nats per token {sign} "
            f"{found.nats_per_token:.4f}{error}, perplexity {sign} {found.perplexity:.2f}, bits per byte {sign} "
            f"{found.bits_per_byte:.4f}; {'an upper bound' if found.is_bound else 'exact'}"
        )
        if model.tokenizer.rewrites:
            print(
                "this tokenizer rewrites text: bits per byte are of what it gives back, and not to be compared with "
                "those of another tokenizer"
            )
        results["datasets"][str(dataset)] = {**found._asdict(), "perplexity": found.perplexity}
    if arguments.tasks:
        results["tasks"] = _tasks(model, arguments)
    if arguments.output:
        write_atomically(arguments.output, (json.dumps(results, indent=1, default=str) + "\n").encode())


def _tasks(model: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run tasks of the harness, print and return its results."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    from card_scale.errors import ConfigurationError
    from card_scale.generation.harness import HarnessModel

    manager = TaskManager(include_path=str(arguments.include_path) if arguments.include_path else None)
    unknown = [name for name in arguments.tasks if name not in manager.all_tasks]
    if unknown:
        raise ConfigurationError(f"--tasks {unknown[0]}: no such task; list them with: lm-eval ls tasks")
    harness = HarnessModel(model, batch_size=arguments.batch, method=arguments.method, draws=arguments.draws)
    found = lm_eval.simple_evaluate(
        model=harness,
        tasks=arguments.tasks,
        num_fewshot=arguments.few_shot,
        limit=arguments.limit,
        task_manager=manager,
        log_samples=False,
    )
    for task, values in found["results"].items():
        for name, value in values.items():
            metric, _, filtered = name.partition(",")
            if isinstance(value, float | int) and not metric.endswith("_stderr"):
                error = values.get(f"{metric}_stderr,{filtered}")
                spread = f" +- {error:.4f}" if isinstance(error, float) else ""
                print(f"{task}: {metric} = {value:.4f}{spread}" if filtered else f"{task}: {metric} {value}")
    print(f"likelihoods: {harness.likelihood}")
    return {"results": found["results"], "versions": found["versions"], "model": harness.get_model_info()}


if __name__ == "__main__":
    sys.exit(run_tool(main))
