#!/usr/bin/env python3
"""Compares finished runs as drafters of their own text: clean likelihood against tokens a pass."""

import argparse
import sys
from pathlib import Path

from card_scale.argument_types import figure_file, output_file, positive
from card_scale.cli import run_tool
from card_scale.files import write_json


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Exit codes: 0 done, 2 command line, 3 a model that cannot be decoded so, 4 data, 5 no checkpoint.",
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run directories, e.g. those of a study")
    parser.add_argument("--prompts", type=positive, default=32, help="of the run's validation samples (default: 32)")
    parser.add_argument("--drafts", type=positive, default=4, help="K (default: 4)")
    parser.add_argument("--candidates", type=positive, default=1, help="considered at each place (default: 1)")
    parser.add_argument("--output", type=output_file, help="write the table as JSON")
    parser.add_argument("--figure", type=figure_file, help="draw loss over AR against tokens a pass")
    return parser.parse_args()


def main() -> None:
    """Run the command."""
    arguments = parse()
    # torch only now: --help must answer at once.

    from card_scale import config as configs
    from card_scale.data.order import evaluated_samples
    from card_scale.data.stream import PackedStream
    from card_scale.environment import environment
    from card_scale.studies.drafters import draw, measure, table

    drafters = []
    for run in arguments.runs:
        config = configs.read(run / "config.yaml", [])
        length = config.model.length
        stream = PackedStream(config.data.validation or config.data.path, "validation", config.run.seed, length)
        rows = stream.samples(evaluated_samples("validation", arguments.prompts, stream.sample_count))
        drafters.append(
            measure(run, rows[:, : length * 3 // 4].tolist(), length // 4, arguments.drafts, arguments.candidates)
        )
        one = table(drafters)[-1]
        masked = " ".join(f"{loss:.2f}" for loss in one["masked_nll"][: arguments.drafts + 1])
        print(
            f"{one['run']}: {one['label']}; clean {one['clean_nll']:.3f}; behind masks {masked or '-'}; "
            f"tokens a pass {one['greedy']:.2f} greedy, {one['sampled']:.2f} sampled, {one['on_text']:.2f} on text",
            flush=True,
        )
    if arguments.output:
        settings = {"drafts": arguments.drafts, "candidates": arguments.candidates, "prompts": arguments.prompts}
        content = {"environment": environment(), **settings, "runs": table(drafters)}
        write_json(arguments.output, content)
    if arguments.figure:
        draw(drafters, arguments.figure)


if __name__ == "__main__":
    sys.exit(run_tool(main))
