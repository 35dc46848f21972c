#!/usr/bin/env python3
"""Measure what CARD costs over AR per training step, on the same model in the same run. On a GPU it uses the GPU."""

import argparse
import os
import sys
from pathlib import Path

from card_scale.cli import run_tool


def parse() -> tuple[argparse.Namespace, list[str]]:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Overrides are group.key=value. Several ranks: start it with torchrun. "
        "Exit codes: 0 done, 2 command line, 3 configuration.",
    )
    parser.add_argument("config", help="YAML file, e.g. launchers/configs/card-124m.yaml")
    parser.add_argument("--pairs", type=int, default=50, help="pairs of steps timed (default: 50)")
    parser.add_argument("--warm-up", type=int, default=10, help="pairs not timed (default: 10)")
    parser.add_argument("--vocabulary", type=int, default=50_368, help="pieces (default: 50368)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result, with hardware and versions")
    return parser.parse_known_args()


def main() -> None:
    """Measure, print, write JSON."""
    arguments, overrides = parse()
    from card_scale import config as configs
    from card_scale import known_warnings

    config = configs.load(arguments.config, overrides)
    known_warnings.silence()
    import torch.distributed as dist

    from card_scale.benchmark import objective_cost
    from card_scale.parallel import process_groups, topology

    process_groups.form(topology.plan(config, int(os.environ.get("WORLD_SIZE", "1"))), config.run.timeout_seconds)
    cost = objective_cost.measure(config, arguments.vocabulary, arguments.pairs, arguments.warm_up)
    if dist.get_rank() == 0:
        used = objective_cost.utilisation(config, arguments.vocabulary, cost)
        print(objective_cost.report(config, cost, used))
        if arguments.json:
            arguments.json.write_text(objective_cost.as_json(config, cost, used) + "\n")
    process_groups.dissolve()


if __name__ == "__main__":
    sys.exit(run_tool(main))
