#!/usr/bin/env python3
"""Measures ways to decode a checkpoint: speed in turns with decoding one token a pass, and what they write."""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from card_scale.argument_types import figure_file, not_negative, not_negative_number, output_file, positive
from card_scale.cli import run_tool
from card_scale.errors import ConfigurationError


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="The figure has speed over autoregressive decoding against the judge's nats per token; settings in the "
        "safe zone are filled. Exit codes: 0 done, 2 command line, 3 an option that the model cannot serve, 4 data, "
        "5 checkpoint unusable.",
    )
    parser.add_argument("checkpoint", type=Path, help="directory, e.g. runs/quickstart/checkpoints/iter_0000200")
    parser.add_argument("--data", required=True, type=Path, help="dataset whose validation samples begin the prompts")
    parser.add_argument(
        "--judge", type=Path, help="checkpoint of another model that scores what is written (an AR one)"
    )
    parser.add_argument(
        "--methods", nargs="+", help="beside one token a pass (default: all that the checkpoint's objective knows)"
    )
    parser.add_argument("--drafts", nargs="+", type=positive, default=[2, 4, 8], help="K (default: 2 4 8)")
    parser.add_argument(
        "--candidates",
        nargs="+",
        type=positive,
        default=[None],
        help="a place, of self_verified (default: 1 on a CPU, else 2)",
    )
    parser.add_argument(
        "--leniency", nargs="+", type=not_negative_number, default=[0.0], help="of self_verified; 0 is lossless"
    )
    parser.add_argument("--copies", type=not_negative, default=24, help="of self_verified; 0 is none (default: 24)")
    parser.add_argument(
        "--tau", nargs="+", type=not_negative_number, default=[0.5, 0.7, 0.9], help="of card (default: 0.5 0.7 0.9)"
    )
    parser.add_argument("--max-passes", nargs="+", type=not_negative, default=[0], help="T_max; 0 is none (default: 0)")
    parser.add_argument(
        "--strides", nargs="+", type=positive, default=[1, 2, 4], help="S of armd_strided (default: 1 2 4)"
    )
    parser.add_argument("--blocks", action="store_true", help="card also as in the paper, a block at a time")
    parser.add_argument("--batch", nargs="+", type=positive, default=[1], help="sequences at a time (default: 1)")
    parser.add_argument("--prompts", type=positive, default=16, help="number of prompts (default: 16)")
    parser.add_argument("--prompt-tokens", type=positive, help="length of a prompt (default: a quarter of the model's)")
    parser.add_argument("--tokens", type=positive, help="new tokens (default: half of the model's length)")
    parser.add_argument("--temperature", type=not_negative_number, default=0.0, help="of all methods (default: 0)")
    parser.add_argument("--repetition-penalty", type=not_negative_number, default=1.0, help="of all (default: 1)")
    parser.add_argument("--repetitions", type=positive, default=3, help="pairs of each measurement (default: 3)")
    parser.add_argument(
        "--tolerance", type=not_negative_number, default=0.05, help="of the safe zone, in nats (default: 0.05)"
    )
    parser.add_argument("--transformers", action="store_true", help="also compare ar with transformers' own decoding")
    parser.add_argument("--threads", type=positive, help="of the CPU (default: all cores)")
    parser.add_argument(
        "--compile", action="store_true", help="compile passes, on a GPU as CUDA graphs: pays for long runs"
    )
    parser.add_argument("--device", help="(default: a GPU where there is one)")
    parser.add_argument("--output", type=output_file, help="write all measurements as JSON")
    parser.add_argument("--figure", type=figure_file, help="draw the front (.png, .svg, .pdf)")
    return parser.parse_args()


def main() -> None:
    """Run the command."""
    arguments = parse()
    # torch only now: --help must answer at once.
    import torch

    from card_scale.generation import load
    from card_scale.generation.methods import check_method
    from card_scale.generation.sampling import Sampling
    from card_scale.generation.sweep import safe_zone, sweep

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = load(arguments.checkpoint, device, compiled=arguments.compile)
    known = model.decoders or ("ar",)
    methods = arguments.methods or known
    for method in methods:
        check_method(model, method)
    settings = _settings(arguments, methods, known[0])
    judge = load(arguments.judge, device) if arguments.judge else None
    if judge is not None:
        model.check_tokenizer(judge.tokenizer.sha256, f"--judge {arguments.judge}")
    prompts, new_tokens = _prompts(arguments, model), arguments.tokens or model.shape.length // 2
    for stride in arguments.strides if "armd_strided" in methods else []:
        if new_tokens % stride:
            raise ConfigurationError(f"--strides {stride} does not divide the {new_tokens} new tokens (--tokens)")
    measured = sweep(
        model,
        prompts,
        settings,
        new_tokens=new_tokens,
        sampling=Sampling(temperature=arguments.temperature, repetition_penalty=arguments.repetition_penalty),
        repetitions=arguments.repetitions,
        judge=judge,
    )
    outcomes = []
    for one in _printed(measured):
        outcomes.append(one)
        if arguments.output:  # anew after each, since there may be minutes between them
            _write(arguments, outcomes)
    if arguments.transformers:
        from card_scale.generation.hugging_face.reference_speed import describe, time_over_transformers

        ratios = time_over_transformers(arguments.checkpoint, model, prompts, new_tokens, arguments.repetitions)
        print(describe(ratios))
    if arguments.figure:
        from card_scale.generation.sweep_figure import draw

        draw(outcomes, safe_zone(outcomes, arguments.tolerance), arguments.figure)


def _settings(arguments: argparse.Namespace, methods: Sequence[str], baseline: str) -> list[Any]:
    """The settings to measure."""
    from card_scale.generation.sweep import grid

    return grid(
        methods,
        arguments.drafts,
        arguments.tau,
        [count or None for count in arguments.max_passes],
        arguments.batch,
        [True, False] if arguments.blocks else [True],
        arguments.copies,
        arguments.strides,
        arguments.leniency,
        arguments.candidates,
        baseline=baseline,
    )


def _prompts(arguments: argparse.Namespace, model: Any) -> list[list[int]]:
    """The beginnings of validation samples from all over the split."""
    from card_scale.data.order import evaluated_samples
    from card_scale.generation.perplexity import open_stream

    stream, length = open_stream(model, arguments.data, "validation"), model.shape.length
    rows = stream.samples(evaluated_samples("validation", arguments.prompts, stream.sample_count))
    return rows[:, : arguments.prompt_tokens or max(1, length // 4)].tolist()


def _printed(measured: Iterable[Any]) -> Iterator[Any]:
    """Print outcomes as they come; yield them."""
    columns = "{:<38} {:>8} {:>8} {:>9} {:>9} {:>8} {:>8} {:>8}"
    print(columns.format("", "tok/pass", "tok/s", "speed-up", "as ar", "judge", "repeated", "entropy"))
    for one in measured:
        judged = "-" if one.judged_nats is None else f"{one.judged_nats:.3f}"
        cells = (f"{one.tokens_per_pass:.2f}", f"{one.tokens_per_second:.0f}", f"{one.speedup:.2f}")
        rates = (f"{one.agreement:.0%}", judged, f"{one.repetition_rate:.0%}", f"{one.entropy:.2f}")
        print(columns.format(one.setting.label, *cells, *rates), flush=True)
        yield one


def _write(arguments: argparse.Namespace, outcomes: list[Any]) -> None:
    """Write the measurements so far, with what they were made by."""
    from card_scale.environment import environment
    from card_scale.files import write_json
    from card_scale.generation.sweep import safe_zone

    safe = safe_zone(outcomes, arguments.tolerance)
    records = [one.record() | {"safe": is_safe} for one, is_safe in zip(outcomes, safe, strict=True)]
    content = {
        "arguments": {key: str(value) for key, value in vars(arguments).items()},
        "environment": environment(),
        "outcomes": records,
    }
    write_json(arguments.output, content)


if __name__ == "__main__":
    sys.exit(run_tool(main))
