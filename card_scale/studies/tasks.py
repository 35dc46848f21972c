"""What a study executes: its runs, and for branching schedules the trunks that they start from.

A trunk is a run at constant rate after warm-up. It is made in legs, one up to each branching point, so that only the
checkpoints that a branch starts from are written and a branch can start while its trunk goes on.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from card_scale import config as configs
from card_scale.config import Config
from card_scale.studies.spec import RunSpec, digest
from card_scale.training.learning_rate import decay_start


class BranchPoint(NamedTuple):
    """Where a branch leaves its trunk."""

    trunk: Path
    """The trunk's run directory."""
    step: int
    """Updates made there."""
    task: str
    """The leg that ends at this step."""


@dataclass(frozen=True)
class Task:
    """One training process: a run, or a leg of a trunk."""

    id: str
    command: tuple[str, ...]
    """Arguments of card_scale.train: a configuration file and overrides."""
    directory: Path
    """Run directory."""
    config: Config
    ranks: int
    steps: int
    """Updates that the directory holds when the task is done."""
    new_steps: int
    """Those of them that the task makes itself."""
    new_evaluations: int
    """Evaluations that it makes."""
    is_leg: bool = False
    after: str | None = None
    """Task that must be done before."""
    branch: BranchPoint | None = None


def tasks_of(specs: Sequence[RunSpec], directory: Path, *, branching: bool) -> list[Task]:
    """Return the tasks of a study's runs in an order that respects ``after``; trunks stand under ``directory``."""
    if not branching:
        return [_run(spec) for spec in specs]
    trunks: dict[str, list[RunSpec]] = {}
    for spec in specs:
        trunks.setdefault(_trunk_name(spec), []).append(spec)
    tasks = []
    for name, members in trunks.items():
        tasks += _branches(name, directory / "trunks" / name, members)
    return tasks


def _run(spec: RunSpec, branch: BranchPoint | None = None) -> Task:
    done = branch.step if branch else 0
    return Task(
        id=spec.id,
        command=(spec.base, *spec.overrides),
        directory=Path(spec.config.run.dir),
        config=spec.config,
        ranks=spec.ranks,
        steps=spec.steps,
        new_steps=spec.steps - done,
        new_evaluations=_evaluations(spec.config, done, spec.steps),
        after=branch.task if branch else None,
        branch=branch,
    )


def _evaluations(config: Config, done: int, steps: int) -> int:
    every = config.train.eval_every
    within = (steps - 1) // every - done // every if every else 0
    return within + 1 + (done == 0)


def _trunk_name(spec: RunSpec) -> str:
    """Return a name that the runs of one trunk share: theirs without their length."""
    config = dataclasses.replace(
        spec.config,
        data=dataclasses.replace(spec.config.data, epochs=None),
        optimizer=dataclasses.replace(spec.config.optimizer, schedule="constant"),
        train=dataclasses.replace(spec.config.train, eval_every=0),
    )
    return f"{spec.cell.arm}-{spec.cell.size}-{digest(config, spec.corpus, spec.held_out)}"


def _branches(name: str, directory: Path, members: Sequence[RunSpec]) -> list[Task]:
    """Return a trunk's legs and the runs that branch off them."""
    points = {spec.id: decay_start(spec.steps, spec.config.optimizer.warmup_steps) for spec in members}
    tasks: list[Task] = []
    before: Task | None = None
    longest = max(members, key=lambda spec: spec.steps)
    legs: dict[int, Task] = {}
    for step in sorted(set(points.values())):
        before = _leg(name, directory, longest, step, before)
        legs[step] = before
        tasks.append(before)
    for spec in members:
        step = points[spec.id]
        tasks.append(_run(spec, BranchPoint(directory, step, legs[step].id)))
    return tasks


def _leg(name: str, directory: Path, longest: RunSpec, step: int, before: Task | None) -> Task:
    """Return the part of a trunk up to a branching point, as the longest run would train it."""
    keys: dict[str, Any] = {
        "data.epochs": "null",
        "train.steps": step,
        "optimizer.schedule": "constant",
        "train.keep_last": 0,  # branches start from all of them
        "run.dir": directory,
    }
    overrides = [o for o in longest.overrides if o.partition("=")[0] not in keys]
    overrides += [f"{key}={value}" for key, value in keys.items()]
    config = configs.load(longest.base, overrides)
    done = before.steps if before else 0
    return Task(
        id=f"{name}@{step}",
        command=(longest.base, *overrides),
        directory=directory,
        config=config,
        ranks=longest.ranks,
        steps=step,
        new_steps=step - done,
        new_evaluations=_evaluations(config, done, step),
        is_leg=True,
        after=before.id if before else None,
    )
