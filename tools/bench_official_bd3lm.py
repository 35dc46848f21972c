#!/usr/bin/env python3
"""Time a training step of block diffusion beside one of the official code's model, of the same sizes, in turns."""

import argparse
import sys
from pathlib import Path

from card_scale.argument_types import output_file, positive
from card_scale.cli import run_tool


def parse() -> tuple[argparse.Namespace, list[str]]:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Overrides are group.key=value, e.g. objective.block=4. One GPU or CPU. The official model needs "
        "einops, omegaconf and huggingface_hub. Exit codes: 0 done, 2 command line, 3 configuration",
    )
    parser.add_argument("repository", type=Path, help="a clone of https://github.com/kuleshov-group/bd3lms")
    parser.add_argument("config", help="YAML file of a run, e.g. launchers/configs/card-124m.yaml")
    parser.add_argument("--length", type=positive, metavar="L", help="default: configured")
    parser.add_argument(
        "--tokens", type=positive, metavar="N", help="of a step, in one micro-batch (default: configured)"
    )
    parser.add_argument("--vocabulary", type=positive, metavar="N", default=50_368, help="pieces (default: 50368)")
    parser.add_argument("--attention", choices=("flex", "sdpa"), help="theirs (default: flex on a GPU, sdpa on a CPU)")
    parser.add_argument("--steps", type=positive, metavar="N", default=20, help="timed steps of each (default: 20)")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write samples and environment")
    overrides = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]
    arguments, others = parser.parse_known_args([word for word in sys.argv[1:] if word not in overrides])
    return arguments, overrides + others


def main() -> None:
    """Measure, print, write."""
    arguments, overrides = parse()
    from card_scale import config as configs
    from card_scale import known_warnings

    config = configs.load(arguments.config, ["objective.name=bd3lm", *overrides])
    known_warnings.silence()
    from card_scale.benchmark import against_official, latency
    from card_scale.benchmark.report import to_json
    from card_scale.distributed import process_groups
    from card_scale.environment import environment
    from card_scale.files import write_atomically
    from card_scale.training import preflight

    lengths = [arguments.length] if arguments.length else []
    (case,) = latency.cases([(Path(arguments.config).stem, config)], lengths, arguments.tokens, world_size=1)
    layout = preflight.check(case.config, world_size=1)
    process_groups.initialize(layout, config.run.timeout_seconds)
    result = against_official.measure(
        arguments.repository, case.config, layout, arguments.vocabulary, arguments.attention, steps=arguments.steps
    )
    process_groups.destroy()
    print(against_official.table(result))
    if arguments.json:
        record = {"environment": environment(), "results": [result]}
        write_atomically(arguments.json, to_json(record).encode())


if __name__ == "__main__":
    sys.exit(run_tool(main))
