"""The start of a branch: its run directory is given the trunk's checkpoint and records, and goes on from there."""

import os
import shutil
from pathlib import Path

from card_scale.checkpoint import directory as directories
from card_scale.checkpoint import format as checkpoint_format
from card_scale.errors import CheckpointError
from card_scale.studies.tasks import BranchPoint
from card_scale.training.run_directory import RunDirectory


def seed(directory: Path, branch: BranchPoint) -> None:
    """Give a branch's run directory the trunk's checkpoint at the branching point, unless it has a checkpoint already.

    Files are hard links where the file system allows it, else copies; a checkpoint is never written to. The trunk's
    metrics come along, so that the branch's records are those of a whole run; the run drops what was recorded after
    the branching point. Raises CheckpointError for a checkpoint of the trunk that is missing or incomplete.
    """
    run, trunk = RunDirectory(directory), RunDirectory(branch.trunk)
    # Any will do: a branch that has gone on may have pruned the one it began with.
    published = (run.checkpoints / directories.name_of(step) for step in directories.published_steps(run.checkpoints))
    if any((path / checkpoint_format.MANIFEST_NAME).is_file() for path in published):
        return
    source = trunk.checkpoints / directories.name_of(branch.step)
    if not source.is_dir():
        raise CheckpointError(
            f"checkpoint {source} is missing: the trunk has not come to the branching point, or has pruned it "
            "(a trunk needs train.keep_last 0)"
        )
    checkpoint_format.read_manifest(source)
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(trunk.metrics, run.metrics)
    temporary = run.checkpoints / directories.temporary_name(branch.step)
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        target = temporary / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        _link(file, target)
    directories.publish(temporary, branch.step)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
