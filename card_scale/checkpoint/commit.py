"""The third phase of a save: once every rank has written, the manifest, the name, the pointer, and what is pruned.

Its collectives have a process group of their own, so that they can be made beside training's. Whatever fails on one
rank fails on all of them, and leaves nothing behind.
"""

import contextlib
import dataclasses
import datetime
from collections.abc import Callable, Iterable
from pathlib import Path

import torch.distributed as dist

from card_scale import faults
from card_scale.checkpoint import directory as directories
from card_scale.checkpoint.format import MANIFEST_NAME, CheckpointManifest, StoredFile, StoredTensor
from card_scale.checkpoint.retention import Retention, prune
from card_scale.checkpoint.run_files import RunFiles
from card_scale.checkpoint.write import RankShare, saving
from card_scale.distributed import process_groups
from card_scale.errors import CheckpointError
from card_scale.files import removed_on_failure, write_atomically


@dataclasses.dataclass(frozen=True)
class Publication:
    """What a commit publishes besides the tensors, and under which conditions."""

    description: CheckpointManifest
    """Manifest without tensors and files, which are filled in."""
    run_files: RunFiles
    """Written by rank 0."""
    retention: Retention
    """Which checkpoints to keep."""
    check_allowed: Callable[[], None] = lambda: None
    """Asked on rank 0 before anything that others see is changed: raises where it may not be."""


def form_commit_group(timeout_seconds: int) -> dist.ProcessGroup:
    """Return a gloo group of all ranks for commits alone. Collective over all ranks; once a job."""
    return dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=timeout_seconds))


def begin(root: Path, step: int, group: dist.ProcessGroup) -> Path:
    """Create the directory that a checkpoint is written into and return it, the same on every rank. Collective.

    Raises CheckpointError, on all ranks, where rank 0's file system refuses.
    """

    def make() -> Path:
        temporary = root / directories.temporary_name(step)
        with saving(temporary):
            temporary.mkdir(parents=True)
        return temporary

    return process_groups.by_main_rank(make, group)


def commit(
    written: RankShare | CheckpointError, temporary: Path, publication: Publication, group: dist.ProcessGroup
) -> Path:
    """Publish what all ranks have written, then prune. Collective over the group.

    Args:
        written: by this rank into ``temporary``, or why it was not.
        temporary: the directory of :func:`begin`; gone where the commit fails.
        publication: the rest of the checkpoint.
        group: of :func:`form_commit_group`.

    Returns:
        The published directory; it is there on every rank's return.

    Raises:
        CardScaleError: on all ranks, with nothing published: a rank could not write, a tensor is not complete, the file
            system refuses, or it was not allowed any more.
    """
    gathered: list | None = [None] * dist.get_world_size(group) if dist.get_rank(group) == 0 else None
    dist.gather_object(written, gathered, group=group, group_dst=0)

    def publish() -> Path:
        assert gathered is not None
        with removed_on_failure(temporary):
            return _publish(gathered, temporary, publication)

    return process_groups.by_main_rank(publish, group)


def _publish(gathered: list[RankShare | CheckpointError], temporary: Path, publication: Publication) -> Path:
    refused = [found for found in gathered if isinstance(found, CheckpointError)]
    if refused:
        raise refused[0]
    step = publication.description.step
    with saving(temporary):
        small = publication.run_files.write(temporary)
        shares = (share for share in gathered if isinstance(share, RankShare))
        manifest = _merge(publication.description, small, shares)
        manifest.check_complete(temporary)
        write_atomically(temporary / MANIFEST_NAME, manifest.to_json().encode())
        faults.reach("checkpoint.manifest", step)
    with saving(temporary.parent / directories.name_of(step)):
        publication.check_allowed()
        published = directories.publish(temporary, step)
    with contextlib.suppress(OSError):  # it is published; the next commit prunes
        faults.reach("checkpoint.pointed", step)
        prune(temporary.parent, publication.retention)
    return published


def _merge(
    description: CheckpointManifest, small: dict[str, StoredFile], shares: Iterable[RankShare]
) -> CheckpointManifest:
    """Return the manifest of everything that was written."""
    files, tensors = dict(small), dict[str, StoredTensor]()
    for share in shares:
        files |= share.files
        for name, stored in share.tensors.items():
            known = tensors.setdefault(name, StoredTensor(stored.shape, stored.dimension))
            known.pieces.extend(stored.pieces)
    return dataclasses.replace(description, tensors=tensors, files=files)
