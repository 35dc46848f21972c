#!/usr/bin/env python3
"""Measure what a checkpoint costs: bandwidth beside plain files, and the time that training waits for it."""

import argparse
import dataclasses
import os
import sys
import tempfile
from pathlib import Path

from card_scale.argument_types import output_file, positive
from card_scale.cli import run_tool


def parse() -> tuple[argparse.Namespace, list[str]]:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Overrides are group.key=value. Several ranks: start it with torchrun. Exit codes: 0 done, 2 command "
        "line, 3 configuration, 5 checkpoint",
    )
    parser.add_argument("config", help="YAML file, e.g. launchers/configs/card-124m.yaml")
    parser.add_argument(
        "--directory", type=Path, help="of the disk to measure; emptied at the end (default: a temporary directory)"
    )
    parser.add_argument("--vocabulary", type=positive, metavar="N", default=8192, help="pieces (default: 8192)")
    parser.add_argument("--steps", type=positive, metavar="N", default=5, help="updates timed at a time (default: 5)")
    parser.add_argument("--rounds", type=positive, metavar="N", default=5, help="default: 5")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write everything, environment included")
    return parser.parse_known_args()


def main() -> None:
    """Measure round by round, then print the ratios."""
    arguments, overrides = parse()
    from card_scale import config as configs
    from card_scale import known_warnings

    config = configs.load(arguments.config, overrides)
    known_warnings.silence()
    from card_scale.benchmark.checkpoint_cost import CheckpointCost, ratios
    from card_scale.benchmark.runner import random_batches
    from card_scale.data.tokenizer import MASK_ID
    from card_scale.distributed import parallel_dims, process_groups
    from card_scale.engine.build import build_engine
    from card_scale.environment import environment
    from card_scale.files import write_json
    from card_scale.model.vocabulary import Vocabulary
    from card_scale.training.train_step import TrainStep

    dims = parallel_dims.plan(config, int(os.environ.get("WORLD_SIZE", "1")))
    process_groups.initialize(dims, config.run.timeout_seconds)
    vocabulary = Vocabulary(arguments.vocabulary, MASK_ID)
    engine = build_engine(config, dims, vocabulary, config.objective.attention)
    train_step = TrainStep(engine, config.objective, config)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as scratch:
        directory = process_groups.by_main_rank(lambda scratch=scratch: Path(scratch))
        cost = CheckpointCost(
            engine, train_step, random_batches(config, arguments.vocabulary), directory, arguments.steps
        )
        rounds = list(cost.rounds(arguments.rounds))
        cost.checkpointer.close()
    found = ratios(rounds, arguments.steps)
    if process_groups.is_main_rank():
        print(f"{cost.bytes / 2**20:.0f} MiB, {dims.describe()}, {config.parallel.engine}")
        for name, value in found.items():
            print(f"{name}: {value:.3f}")
        if arguments.json:
            record = {
                "environment": environment(),
                "config": config.flat(),
                "bytes": cost.bytes,
                "ratios": found,
                "rounds": [dataclasses.asdict(each) for each in rounds],
            }
            write_json(arguments.json, record)
    process_groups.destroy()


if __name__ == "__main__":
    sys.exit(run_tool(main))
