#!/usr/bin/env python3
"""Simulate grids of runs and say whether they identify R_D: coverage and verdicts of the intervals."""

import argparse
import sys

from card_scale.argument_types import not_negative, not_negative_number, output_file, positive, positive_number
from card_scale.cli import run_tool
from card_scale.environment import environment
from card_scale.files import write_json
from card_scale.laws.coverage import Grid, coverage
from card_scale.laws.fit_report import number
from card_scale.laws.forms import DATA_CONSTRAINED


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--values", type=positive_number, nargs="+", default=[15.387756, 31.93, 512.85], help="true R_D"
    )
    parser.add_argument(
        "--epochs", type=positive, nargs="+", default=[4, 16, 64, 256, 800], help="most epochs of a grid"
    )
    parser.add_argument(
        "--sizes", type=positive_number, nargs="+", default=list(Grid().sizes), help="parameters of the runs"
    )
    parser.add_argument("--unique", type=positive_number, nargs="+", default=list(Grid().unique), help="unique tokens")
    parser.add_argument(
        "--fitted", nargs="+", default=["R_D"], choices=DATA_CONSTRAINED.constants, help="the others are given"
    )
    parser.add_argument("--noise", type=not_negative_number, default=0.003, help="standard deviation of log loss")
    parser.add_argument("--repetitions", type=positive, default=400)
    parser.add_argument("--seed", type=not_negative, default=0)
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the result")
    return parser.parse_args()


def main() -> None:
    """Simulate every grid, print a line each."""
    options = parse()
    print(f"fitted: {', '.join(options.fitted)}; noise {options.noise:g}; {options.repetitions} repetitions")
    results = []
    for value in options.values:
        for epochs in options.epochs:
            grid = Grid(tuple(options.sizes), tuple(options.unique), epochs)
            found = coverage(value, grid, options.fitted, options.noise, options.repetitions, options.seed)
            results.append(found._asdict() | {"estimates": [number(one) for one in found.estimates]})
            said = ", ".join(f"{kind} {100.0 * share:.0f} %" for kind, share in found.verdicts.items() if share)
            low, median, high = found.estimates
            print(
                f"R_D {value:7.5g}, {epochs:3d} epochs: 95 % interval covers {100.0 * found.covered:.1f} %, "
                f"unbounded {100.0 * found.unbounded:.0f} %; estimates {low:.3g} / {median:.3g} / {high:.3g}; {said}",
                flush=True,
            )
    if options.json:
        result = {"results": results, "environment": environment()}
        write_json(options.json, result)
        print(f"written: {options.json}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
