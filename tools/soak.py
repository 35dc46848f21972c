#!/usr/bin/env python3
"""Rehearse faults: kill, stop and damage a run at random for some minutes, and compare its end with a calm one's."""

import argparse
import collections
import sys
import time
from pathlib import Path

from card_scale.argument_types import output_file, positive, positive_number
from card_scale.cli import run_tool


def parse() -> tuple[argparse.Namespace, list[str]]:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Overrides are group.key=value for every start. Half of the time goes to one layout, whose run must end "
        "bit for bit as a calm one, half to changing layouts, whose end must be as near as a calm run's at any of "
        "them. Exit codes: 0 done, 2 command line, 3 configuration, 4 the ledger is not exact, 5 the ends differ",
    )
    parser.add_argument("config", help="YAML file, e.g. launchers/configs/quickstart.yaml")
    parser.add_argument("--minutes", type=positive_number, default=30.0, help="of disturbances (default: 30)")
    parser.add_argument("--steps", type=positive, default=400, help="of each run (default: 400)")
    parser.add_argument("--seed", type=int, default=0, help="of what happens when (default: 0)")
    parser.add_argument("--directory", type=Path, required=True, help="for the runs; must be new")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write everything, environment included")
    return parser.parse_known_args()


def main() -> None:
    """Make the calm runs, the disturbed ones, and compare."""
    arguments, overrides = parse()
    from card_scale.environment import environment
    from card_scale.errors import CheckpointError, ConfigurationError, DataError
    from card_scale.files import write_json
    from card_scale.rehearsal import soak
    from card_scale.rehearsal.soak import Layout, Soak

    if arguments.directory.exists():
        raise ConfigurationError(f"--directory {arguments.directory} exists; choose a new one")
    layouts = {
        "calm": Layout(2, ("parallel.pipeline=1",)),
        "calm-one-rank": Layout(1, ("parallel.pipeline=1",)),
        "calm-stages": Layout(2, ("parallel.pipeline=2",)),
        "calm-fsdp2": Layout(2, ("parallel.pipeline=1", "parallel.engine=fsdp2", "parallel.deepspeed=null")),
    }

    def runner(name: str) -> Soak:
        command = [arguments.config, *overrides]
        seed = arguments.seed + (name == "changing-layouts")
        return Soak(command, arguments.directory / name, arguments.steps, seed)

    for name, layout in layouts.items():
        attempt = runner(name).start(layout, None)
        print(f"{name}: code {attempt.code}, {attempt.seconds:.0f} s", flush=True)
        if attempt.code != 0:
            raise CheckpointError(f"the calm run ended with code {attempt.code}; see {arguments.directory / name}")
    record: dict = {"environment": environment(), "steps": arguments.steps, "seed": arguments.seed, "runs": {}}
    for name, choices in (("one-layout", [layouts["calm"]]), ("changing-layouts", [*layouts.values()])):
        until = time.monotonic() + arguments.minutes * 30
        attempts = list(runner(name).disturbed(choices, until))
        report = soak.ledger_of(arguments.directory / name)
        found = soak.differences(soak.final(arguments.directory / name), soak.final(arguments.directory / "calm"))
        record["runs"][name] = {
            "attempts": [attempt._asdict() | {"layout": attempt.layout._asdict()} for attempt in attempts],
            "kinds": collections.Counter(attempt.what for attempt in attempts),
            "lost": report.lost,
            "doubled": report.doubled,
            "differences": found,
        }
        print(f"{name}: {len(attempts)} attempts; {report.verdict()}; differs by {shown(found)}", flush=True)
        if not report.is_exact:
            raise DataError(report.text())
    record["noise"] = {
        name: soak.differences(soak.final(arguments.directory / name), soak.final(arguments.directory / "calm"))
        for name in layouts
        if name != "calm"
    }
    # Of the layouts that the disturbed run may have been at, the one that sums most differently.
    states = record["runs"]["one-layout"]["differences"]
    noise = {state: max(differences[state] for differences in record["noise"].values()) for state in states}
    print(f"calm runs on different layouts differ by up to {shown(noise)}")
    if arguments.json:
        write_json(arguments.json, record)
    same, changed = (record["runs"][name]["differences"] for name in ("one-layout", "changing-layouts"))
    judge(same, changed, noise)


def judge(same: dict[str, float], changed: dict[str, float], noise: dict[str, float]) -> None:
    """Raise CheckpointError unless the disturbed runs have ended where the calm ones have."""
    from card_scale.errors import CheckpointError

    if any(same.values()):
        raise CheckpointError(f"the run disturbed at one layout ended elsewhere: {shown(same)}")
    if any(changed[key] > 10 * noise[key] for key in noise):
        raise CheckpointError(f"the run at changing layouts ended elsewhere: {shown(changed)}, noise {shown(noise)}")
    if max(noise.values()) > 0.01:
        raise CheckpointError(
            f"the noise of the order of summation has grown to {shown(noise)}, which tells nothing; lower optimizer.lr"
        )


def shown(differences: dict[str, float]) -> str:
    """Return the numbers in a line."""
    return ", ".join(f"{key} {value:.2g}" for key, value in differences.items())


if __name__ == "__main__":
    sys.exit(run_tool(main))
