#!/usr/bin/env python3
"""Train several objectives with one data order and compare their held-out likelihood at equal tokens and equal FLOPs.

Each arm is an ordinary run in its own directory; an interrupted comparison goes on, a finished one only draws.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from card_scale.cli import run_tool
from card_scale.errors import ConfigurationError, ExitCode, StopRequested
from card_scale.objectives import registry


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Exit codes: 0 done, 2 command line, 3 configuration, 4 data, 75 stopped: start it again.",
    )
    parser.add_argument("config", help="YAML file of all arms, e.g. launchers/configs/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", help="group.key=value for all arms")
    parser.add_argument(
        "--arms", nargs="+", default=list(registry.BUILT_IN), choices=registry.names(), help="(default: %(default)s)"
    )
    parser.add_argument("--of", action="append", default=[], metavar="ARM:KEY=VALUE", help="override for one arm")
    parser.add_argument("--runs", type=Path, required=True, help="directory of the runs")
    parser.add_argument("--output", type=Path, required=True, help="stem of the results: .json and .png are added")
    parser.add_argument("--title", default="", help="title of the figure")
    return parser.parse_args()


def main() -> None:
    """Train what is not yet trained, then print, write and draw the comparison."""
    options = parse()
    own: dict[str, list[str]] = {arm: [] for arm in options.arms}
    for item in options.of:
        arm, colon, override = item.partition(":")
        if not colon or arm not in own:
            raise ConfigurationError(f"--of {item} is not ARM:KEY=VALUE with an arm of {', '.join(own)}")
        own[arm].append(override)
    for arm in options.arms:
        command = [sys.executable, "-m", "card_scale.train", options.config, f"objective.name={arm}"]
        train([*command, f"run.dir={options.runs / arm}", *options.overrides, *own[arm]])

    from card_scale.benchmark import comparison
    from card_scale.environment import environment

    curves = [comparison.read_curve(arm, options.runs / arm) for arm in options.arms]
    print(comparison.table(curves))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "equal": {
            cost: {arm: point._asdict() for arm, point in points.items()}
            for cost, points in comparison.at_equal_cost(curves).items()
        },
        "curves": {
            curve.name: {"bound": curve.bound, "points": [point._asdict() for point in curve.points]}
            for curve in curves
        },
        "configs": {arm: (options.runs / arm / "config.yaml").read_text(encoding="utf-8") for arm in options.arms},
        "environment": environment(),
    }
    options.output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    comparison.plot(curves, options.title, options.output.with_suffix(".png"))
    print(f"written: {options.output.with_suffix('.json')}, {options.output.with_suffix('.png')}")


def train(command: list[str]) -> None:
    """Run one arm. Raises StopRequested if it was stopped, SystemExit with its exit code if it failed."""
    print(" ".join(["python", *command[1:]]), flush=True)
    process = subprocess.Popen(command)
    code = None
    while code is None:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            # The terminal has interrupted the run as well; it saves and ends by itself.
            continue
    if code == ExitCode.STOPPED:
        raise StopRequested("the run was stopped; the same command goes on")
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    sys.exit(run_tool(main))
