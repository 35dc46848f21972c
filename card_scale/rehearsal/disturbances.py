"""What may happen to a run: processes killed or asked to stop, faults at named points, damaged checkpoints."""

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from card_scale.checkpoint import directory as directories
from card_scale.training.run_directory import RunDirectory

_STEP_PLACES = ("step.begin", "step.forward", "step.backward", "step.update", "step.end", "data.batch")
_PLACES_OF_ALL = ("checkpoint.begin", "checkpoint.file", "checkpoint.written")
_PLACES_OF_RANK_0 = ("checkpoint.manifest", "checkpoint.named", "checkpoint.pointed", "checkpoint.pruned")
SOON = 40
"""Updates within which a fault of an update happens: a start shall not run undisturbed to the end."""


class Job(NamedTuple):
    """A start of the command that is under way."""

    launcher: int
    """Process number of torchrun."""
    directory: RunDirectory

    def ranks(self) -> list[int]:
        """Process numbers of the ranks that are there."""
        children = Path(f"/proc/{self.launcher}/task/{self.launcher}/children")
        try:
            return [int(number) for number in children.read_text(encoding="ascii").split()]
        except (FileNotFoundError, ProcessLookupError):
            return []


class Disturbance(NamedTuple):
    """Something that may happen."""

    name: str
    act: Callable[[Job], None]
    """Done once, after a while; nothing where the fault is told before the start."""
    fault: str = ""
    """For the environment of the command."""
    after: Callable[[RunDirectory], None] = lambda _: None
    """Done when the command has ended."""


def draw(generator: random.Random, ranks: int, steps: range) -> Disturbance:
    """Return what happens to the next start of a run of so many ranks that is to make ``steps``."""
    rank = generator.randrange(ranks)
    kind = generator.randrange(9)
    if kind == 0:
        return Disturbance("kill -9 of a rank", lambda job: _kill(job.ranks()[rank : rank + 1]))
    if kind == 1:
        return Disturbance("kill -9 of all", lambda job: _kill([*job.ranks(), job.launcher]))
    if kind == 2:
        return Disturbance("SIGTERM to the launcher", lambda job: _signal([job.launcher], signal.SIGTERM))
    if kind == 3:
        return Disturbance("SIGUSR1 to a rank", lambda job: _signal(job.ranks()[rank : rank + 1], signal.SIGUSR1))
    if kind == 4:
        return Disturbance("the file STOP", lambda job: job.directory.stop.touch())
    if kind == 5:
        seed = generator.random()
        return Disturbance(
            "kill -9 of all, newest checkpoint damaged",
            lambda job: _kill([*job.ranks(), job.launcher]),
            after=lambda directory: damage_newest(directory, random.Random(seed)),
        )
    # The places of a save are not passed at every step.
    where = f",step={generator.choice(steps[:SOON])}" if kind == 6 else ""
    place = generator.choice(_STEP_PLACES if kind == 6 else _PLACES_OF_ALL + _PLACES_OF_RANK_0)
    rank = 0 if place in _PLACES_OF_RANK_0 else rank
    action = "exception" if kind == 6 and generator.random() < 0.3 else "enospc" if kind == 8 else "kill"
    return Disturbance(f"{action} at {place}{where}", lambda _: None, f"rank={rank},at={place},action={action}{where}")


def damage_newest(directory: RunDirectory, generator: random.Random) -> None:
    """Flip a bit of a file of the newest checkpoint, where there is one before it."""
    steps = directories.published_steps(directory.checkpoints)
    if len(steps) < 2:
        return
    newest = directory.checkpoints / directories.name_of(steps[0])
    path = generator.choice(sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size))
    content = bytearray(path.read_bytes())
    content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    path.write_bytes(content)


def _kill(processes: list[int]) -> None:
    _signal(processes, signal.SIGKILL)


def _signal(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        try:
            os.kill(process, number)
        except ProcessLookupError:
            continue
