#!/usr/bin/env python3
"""Train several objectives with one data order and compare their held-out likelihood at equal tokens and equal FLOPs.

Each arm is an ordinary run in its own directory; an interrupted comparison goes on, a finished one only draws.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from card_scale import config as configs
from card_scale.argument_types import positive
from card_scale.cli import run_tool
from card_scale.errors import CommandLineError, ExitCode, StopRequested
from card_scale.files import write_json
from card_scale.objectives import registry


class Arm(NamedTuple):
    """What is trained beside the others."""

    name: str
    objective: str


class ArmRun(NamedTuple):
    """One run of an arm, and the command that trains it."""

    arm: str
    directory: Path
    command: list[str]


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
        "--ranks",
        type=positive,
        metavar="N",
        help="processes of a run (default: the fewest that hold its arm's layout)",
    )
    parser.add_argument("--runs", type=Path, required=True, help="directory of the runs")
    parser.add_argument("--output", type=Path, required=True, help="stem of the results: .json and .png are added")
    parser.add_argument("--title", default="", help="title of the figure")
    return parser.parse_intermixed_args()


def main() -> None:
    """Train what is not yet trained, then print, write and draw the comparison."""
    options = parse()
    runs = runs_of(options)
    for one in runs:
        train(one.command)

    from card_scale.benchmark import comparison
    from card_scale.environment import environment

    curves = [comparison.read_curve(one.arm, one.directory) for one in runs]
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
        "configs": {one.directory.name: (one.directory / "config.yaml").read_text(encoding="utf-8") for one in runs},
        "environment": environment(),
    }
    write_json(options.output.with_suffix(".json"), result)
    comparison.plot(curves, options.title, options.output.with_suffix(".png"))
    print(f"written: {options.output.with_suffix('.json')}, {options.output.with_suffix('.png')}")


def runs_of(options: argparse.Namespace) -> list[ArmRun]:
    """Return the runs of all arms and seeds.

    Raises CommandLineError for options that contradict one another, ConfigurationError for an arm that cannot be run.
    """
    for what, given in (("--arms", [one.name for one in options.arms]), ("--seeds", options.seeds or [])):
        if len(set(given)) < len(given):
            raise CommandLineError(f"{what} {' '.join(map(str, given))} names one twice; each has its own directory")
    own: dict[str, list[str]] = {one.name: [] for one in options.arms}
    for item in options.of:
        name, colon, override = item.partition(":")
        if not colon or name not in own:
            raise CommandLineError(f"--of {item} is not ARM:KEY=VALUE with an arm of {', '.join(own)}")
        own[name].append(override)
    found = []
    for seed in options.seeds or [None]:
        for one in options.arms:
            directory = options.runs / (one.name if seed is None else f"{one.name}-s{seed}")
            given = [f"objective.name={one.objective}", f"run.dir={directory}"]
            given += [] if seed is None else [f"run.seed={seed}"]
            given += [*options.overrides, *own[one.name]]
            parallel = configs.load(options.config, given).parallel
            ranks = options.ranks or parallel.tensor * parallel.pipeline
            program = [sys.executable, "-m", "card_scale.train"]
            if ranks > 1:
                program = ["launchers/torchrun_one_node.sh", "--nproc", str(ranks)]
            found.append(ArmRun(one.name, directory, [*program, options.config, *given]))
    return found


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
