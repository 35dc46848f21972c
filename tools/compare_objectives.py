#!/usr/bin/env python3
"""Train several objectives with one data order and compare their held-out likelihood at equal tokens and equal FLOPs.

Each arm is an ordinary run in its own directory; an interrupted comparison goes on, a finished one only draws.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from card_scale import config as configs
from card_scale.argument_types import positive
from card_scale.cli import run_tool
from card_scale.errors import ConfigurationError, ExitCode, StopRequested
from card_scale.objectives import registry


class Arm(NamedTuple):
    """What is trained beside the others."""

    name: str
    objective: str


def arm(text: str) -> Arm:
    """``OBJECTIVE`` or ``NAME=OBJECTIVE``."""
    name, _, objective = text.rpartition("=")
    if objective not in registry.names():
        raise argparse.ArgumentTypeError(f"{text!r} names no objective; valid are {', '.join(registry.names())}")
    return Arm(name or objective, objective)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Exit codes: 0 done, 2 command line, 3 configuration, 4 data, 75 stopped: start it again.",
    )
    parser.add_argument("config", help="YAML file of all arms, e.g. launchers/configs/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", help="group.key=value for all arms")
    parser.add_argument(
        "--arms",
        nargs="+",
        type=arm,
        default=[Arm(name, name) for name in registry.BUILT_IN],
        metavar="ARM",
        help="an objective, or NAME=OBJECTIVE for one of several arms of it; of "
        f"{', '.join(registry.names())} (default: all built-in ones)",
    )
    parser.add_argument("--of", action="append", default=[], metavar="ARM:KEY=VALUE", help="override for one arm")
    parser.add_argument("--seeds", nargs="+", type=int, help="values of run.seed (default: the configuration's)")
    parser.add_argument(
        "--ranks", type=positive, metavar="N", help="processes of a run (default: the fewest that hold the layout)"
    )
    parser.add_argument("--runs", type=Path, required=True, help="directory of the runs")
    parser.add_argument("--output", type=Path, required=True, help="stem of the results: .json and .png are added")
    parser.add_argument("--title", default="", help="title of the figure")
    return parser.parse_args()


def main() -> None:
    """Train what is not yet trained, then print, write and draw the comparison."""
    options = parse()
    for what, given in (("--arms", [one.name for one in options.arms]), ("--seeds", options.seeds or [])):
        if len(set(given)) < len(given):
            raise ConfigurationError(f"{what} {' '.join(map(str, given))} names one twice; each has its own directory")
    own: dict[str, list[str]] = {one.name: [] for one in options.arms}
    for item in options.of:
        name, colon, override = item.partition(":")
        if not colon or name not in own:
            raise ConfigurationError(f"--of {item} is not ARM:KEY=VALUE with an arm of {', '.join(own)}")
        own[name].append(override)
    runs = [
        (one, options.runs / (one.name if seed is None else f"{one.name}-s{seed}"), seed)
        for seed in options.seeds or [None]
        for one in options.arms
    ]
    parallel = configs.load(options.config, options.overrides).parallel
    ranks = options.ranks or parallel.tensor * parallel.pipeline
    program = [sys.executable, "-m", "card_scale.train"]
    if ranks > 1:
        program = ["launchers/torchrun_one_node.sh", "--nproc", str(ranks)]
    for one, directory, seed in runs:
        command = [*program, options.config, f"objective.name={one.objective}", f"run.dir={directory}"]
        command += [] if seed is None else [f"run.seed={seed}"]
        train([*command, *options.overrides, *own[one.name]])

    from card_scale.benchmark import comparison
    from card_scale.environment import environment

    curves = [comparison.read_curve(one.name, directory) for one, directory, _ in runs]
    print(comparison.table(curves))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "upper_bounds": sorted({curve.name for curve in curves if curve.bound}),
        "equal": {
            cost: {name: [point._asdict() for point in points] for name, points in arms.items()}
            for cost, arms in comparison.at_equal_cost(curves).items()
        },
        "curves": [
            {
                "arm": curve.name,
                "seed": curve.seed,
                "bound": curve.bound,
                "points": [point._asdict() for point in curve.points],
                "others": curve.others,
            }
            for curve in curves
        ],
        "configs": {path.name: (path / "config.yaml").read_text(encoding="utf-8") for _, path, _ in runs},
        "environment": environment(),
    }
    options.output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    comparison.plot(curves, options.title, options.output.with_suffix(".png"))
    print(f"written: {options.output.with_suffix('.json')}, {options.output.with_suffix('.png')}")


def train(command: list[str]) -> None:
    """Run one arm. Raises StopRequested if it was stopped, SystemExit with its exit code if it failed."""
    print(" ".join("python" if part == sys.executable else part for part in command), flush=True)
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
