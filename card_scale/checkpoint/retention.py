"""Which checkpoints of a run are kept, and how the others go: renamed first, so that no half of one is ever read."""

import contextlib
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from card_scale import faults
from card_scale.checkpoint import directory as directories
from card_scale.errors import CheckpointError
from card_scale.files import sync_directory


@dataclass(frozen=True)
class Retention:
    """What to keep: ``train.keep_last`` and ``train.keep_every``."""

    keep_last: int = 0
    """The newest so many; 0 keeps all."""
    keep_every: int = 0
    """Also those whose step is a multiple of it; 0 none."""


def to_prune(steps: Collection[int], pointer: int | None, keep_last: int, keep_every: int) -> list[int]:
    """Return the steps of the checkpoints to delete, oldest first.

    Kept are the pointer's, the newest ``keep_last`` up to it, and the multiples of ``keep_every``. Those after the
    pointer's are left alone: of a run that was set back by hand, which will write them again. Without a pointer, or
    with one to a checkpoint that is not there, nothing is certain and nothing goes.
    """
    if keep_last == 0 or pointer is None or pointer not in steps:
        return []
    before = sorted(step for step in set(steps) if step <= pointer)
    return [step for step in before[:-keep_last] if not (keep_every and step % keep_every == 0)]


def prune(root: Path, retention: Retention) -> None:
    """Delete what is not to be kept, and what killed processes left up to the pointer's step.

    A directory that cannot be renamed or deleted now (a reader on a network file system holds one of its files) is
    tried again the next time.
    """
    pointer = directories.pointed_step(root)
    if pointer is None:
        return
    renamed = False
    for step in steps_to_prune(root, retention):
        with contextlib.suppress(OSError):
            (root / directories.name_of(step)).rename(root / directories.pruned_name(step))
            renamed = True
    if renamed:
        # The names must be gone for good before the first file is: a power cut could bring back half a checkpoint.
        sync_directory(root)
        faults.reach("checkpoint.pruned", pointer)
    for leftover in directories.leftovers(root, pointer):
        shutil.rmtree(leftover, ignore_errors=True)


def remove_unfinished(root: Path) -> None:
    """Delete what killed processes left of checkpoints that were never published: on a disk that they have filled no
    save would succeed, and none be left to prune. For who holds the run directory, while it saves nothing."""
    for leftover in directories.unfinished(root):
        shutil.rmtree(leftover, ignore_errors=True)


def steps_to_prune(root: Path, retention: Retention) -> list[int]:
    """Return the steps of the checkpoints that :func:`prune` would delete, oldest first."""
    pointer = directories.pointed_step(root)
    if pointer is None:
        return []
    steps = _steps_to_count(root, pointer, retention.keep_last)
    return to_prune(steps, pointer, retention.keep_last, retention.keep_every)


def _steps_to_count(root: Path, pointer: int, keep_last: int) -> list[int]:
    """Return the published steps up to the pointer's, without damaged ones that would take a newest one's place."""
    steps = [step for step in directories.published_steps(root) if step <= pointer]
    damaged: set[int] = set()
    sound = 0
    for step in steps:
        if sound == keep_last:
            break
        try:
            directories.complete_manifest(root, step)
            sound += 1
        except CheckpointError:
            damaged.add(step)
    return [step for step in steps if step not in damaged]
