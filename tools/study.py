#!/usr/bin/env python3
"""Plan, run and tabulate a study of data repetition from one YAML grid (docs/studies.md).

The plan comes first and starts nothing. An interrupted study goes on with the same command; finished runs are not made
again.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from card_scale import known_warnings
from card_scale.cli import run_tool
from card_scale.errors import CardScaleError, ConfigurationError

if TYPE_CHECKING:  # --help must answer at once
    from card_scale.studies.grid import Grid
    from card_scale.studies.plan import Plan
    from card_scale.studies.spec import RunSpec
    from card_scale.studies.state import StudyDirectory
    from card_scale.studies.tasks import Task


class Study(NamedTuple):
    """A grid with everything that follows from it."""

    grid: "Grid"
    directory: "StudyDirectory"
    specs: "list[RunSpec]"
    tasks: "list[Task]"
    plan: "Plan"


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Exit codes: 0 done, 2 command line, 3 configuration, 4 data, 75 stopped: start it again; where runs "
        "failed, the first one's code.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in {
        "plan": "check the grid and print what it will cost; starts nothing (but --measure)",
        "run": "make the runs that are not finished, on this machine or on Slurm",
        "status": "say how far each run is",
        "table": "write the result table: results.parquet, results.csv, and the curves beside them",
    }.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("grid", type=Path, help="YAML file, e.g. launchers/studies/cpu-minutes.yaml")
        command.add_argument("--directory", type=Path, help="of the study (default: runs/studies/ and the grid's name)")
        if name == "plan":
            command.add_argument("--measure", action="store_true", help="time a few steps of each model here first")
        if name in ("plan", "run"):
            command.add_argument("--at-once", type=int, metavar="N", help="runs side by side (default: what fits)")
        if name == "run":
            command.add_argument("--retry-failed", action="store_true", help="also make failed runs again")
            command.add_argument("--slurm", action="store_true", help="submit to Slurm instead of running here")
            command.add_argument("--dry-run", action="store_true", help="with --slurm: print what would be submitted")
    options = parser.parse_args()
    if getattr(options, "at_once", None) is not None and options.at_once < 1:
        parser.error(f"--at-once {options.at_once} must be at least 1")
    if options.command == "run" and options.dry_run and not options.slurm:
        parser.error("--dry-run belongs to --slurm; `study.py plan` shows what would run here")
    return options


def open_study(options: argparse.Namespace) -> Study:
    """Return the study of a grid file, its plan made; everything that can be refused has been."""
    from card_scale.studies import grid as grids
    from card_scale.studies import measure, plan
    from card_scale.studies.spec import specs
    from card_scale.studies.state import StudyDirectory
    from card_scale.studies.tasks import tasks_of

    grid = grids.load(options.grid)
    directory = StudyDirectory(options.directory or Path("runs/studies") / options.grid.stem)
    runs = specs(grid, directory.path)
    tasks = tasks_of(runs, directory.path, branching=grid.schedule == "wsd-branches")
    plan.prepare_directory(directory.path)
    if getattr(options, "measure", False):
        require_corpora(runs)
        measure.measure(runs, directory.path, os.environ)
    costs = plan.plan(grid, runs, tasks, measure.read(directory.path))
    return Study(grid, directory, runs, tasks, costs)


def require_corpora(specs: "Sequence[RunSpec]") -> None:
    """Raise ConfigurationError if a run's corpus is only stated."""
    for spec in specs:
        if not (spec.corpus.exists and spec.held_out.exists):
            raise ConfigurationError(f"{spec.config.data.path} does not exist yet; the grid only states its size")


def main() -> None:
    """Run a subcommand."""
    options = parse()
    known_warnings.silence()
    commands = {"plan": show_plan, "run": run, "status": show_status, "table": write_table}
    commands[options.command](options)


def show_plan(options: argparse.Namespace) -> None:
    """Print the plan and write it beside the runs."""
    from card_scale.studies import plan

    study = open_study(options)
    print(plan.table(study.plan, options.at_once or at_once_of(study)))
    plan.write(study.plan, study.directory.path)
    print(f"written: {study.directory.path / 'plan.json'}, plan.csv")


def at_once_of(study: Study) -> int:
    """Return how many runs `run` would make at once: one where the plan is for a machine other than this."""
    from card_scale.studies.runner import at_once_here, this_machine

    machine, costs = this_machine(), study.plan.costs
    fits = machine.gpus >= max(cost.ranks for cost in costs)
    here = fits or (study.grid.hardware.device is None and machine.gpus == 0)
    return at_once_here(machine, costs) if here else 1


def run(options: argparse.Namespace) -> None:
    """Make what is not finished, then write the table."""
    from card_scale.studies import plan, slurm
    from card_scale.studies.endings import statuses
    from card_scale.studies.runner import LocalRunner, at_once_here, needed, this_machine
    from card_scale.training.stop import StopRequest

    study = open_study(options)
    require_corpora(study.specs)
    lock = study.directory.runner_lock()
    machine = this_machine()
    status = statuses(study.directory, study.tasks)
    tasks = needed(study.tasks, status, retry_failed=options.retry_failed)
    if options.slurm:
        waiting = slurm.queued(study.directory) if not options.dry_run else set()
        tasks = [task for task in tasks if task.id not in waiting]
        if options.dry_run:
            for array in slurm.arrays(tasks, study.grid.slurm):
                print(slurm.describe(array, study.grid.slurm))
            return
        jobs = slurm.submit(study.directory, tasks, study.grid.slurm, "slurm")
        print(f"submitted {len(jobs)} jobs ({len(waiting)} still in the queue); tools/study.py status {options.grid}")
        return
    costs = [cost for cost in study.plan.costs if cost.id in {task.id for task in tasks}]
    at_once = options.at_once or (at_once_here(machine, costs) if costs else 1)
    print(plan.table(study.plan, at_once))
    plan.write(study.plan, study.directory.path)
    print(f"\n{len(tasks)} of {len(study.tasks)} tasks to make, {at_once} at once; logs in {study.directory.path}/logs")
    seconds = {cost.id: cost.seconds for cost in costs}
    runner = LocalRunner(study.directory, tasks, at_once=at_once, machine=machine, seconds=seconds)
    try:
        with StopRequest() as stop:
            runner.run(stop)
    except (CardScaleError, KeyboardInterrupt):
        try:
            tabulate(study)
        except CardScaleError as error:  # the end that was asked for is the one to be told
            print(f"warning: no table: {error}", file=sys.stderr)
        raise
    finally:
        lock.release()
    tabulate(study)
    failed = [outcome for outcome in runner.outcomes.values() if outcome.status == "failed"]
    if failed:
        raise SystemExit(failed[0].code if failed[0].code and failed[0].code > 0 else 1)


def show_status(options: argparse.Namespace) -> None:
    """Print how far each task is, how many have which status, and how long the rest will take."""
    from card_scale.studies.progress import progress, summary

    study = open_study(options)
    found = progress(study.directory, study.tasks, {cost.id: cost for cost in study.plan.costs})
    for one in found:
        print(one.line())
    print(summary(found, at_once_of(study)))


def write_table(options: argparse.Namespace) -> None:
    """Write the result table and the curves."""
    tabulate(open_study(options))


def tabulate(study: Study) -> None:
    """Write results, curves and losses by pass; say how many rows failed."""
    from card_scale.studies import results
    from card_scale.studies import table_files as tables

    rows = results.rows(study.directory, study.specs, study.tasks)
    written = tables.write(rows, study.directory.path / "results")
    for name, found in {
        "curves": results.curves(study.specs),
        "losses_by_pass": results.losses_by_pass(study.specs),
    }.items():
        if found:
            written += tables.write(found, study.directory.path / name)
    counted = Counter(row["status"] for row in rows)
    print(f"{len(rows)} rows ({', '.join(f'{count} {status}' for status, count in counted.items())}): {written[1]}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
