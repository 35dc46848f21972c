"""The third phase of a save: once every rank has written, the manifest, the name, the pointer, and what is pruned.

Its collectives have a process group of their own, so that they can be made beside training's.
"""

import dataclasses
import datetime
from collections.abc import Iterable
from pathlib import Path

import torch.distributed as dist

from card_scale.checkpoint import directory as directories
from card_scale.checkpoint.format import MANIFEST_NAME, CheckpointManifest, StoredFile, StoredTensor
from card_scale.checkpoint.retention import Retention, prune
from card_scale.checkpoint.run_files import RunFiles
from card_scale.checkpoint.write import RankShare, saving
from card_scale.files import write_atomically


def form_commit_group(timeout_seconds: int) -> dist.ProcessGroup:
    """Return a gloo group of all ranks for commits alone. Collective over all ranks; once a job."""
    return dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=timeout_seconds))


def begin(root: Path, step: int, group: dist.ProcessGroup) -> Path:
    """Create the directory that a checkpoint is written into and return it, the same on every rank. Collective."""
    name = [directories.temporary_name(step)]
    if dist.get_rank(group) == 0:
        with saving(root / name[0]):
            (root / name[0]).mkdir(parents=True)
    dist.broadcast_object_list(name, group=group, group_src=0)
    return root / name[0]


def commit(
    share: RankShare,
    temporary: Path,
    description: CheckpointManifest,
    run_files: RunFiles,
    retention: Retention,
    group: dist.ProcessGroup,
) -> Path:
    """Publish what all ranks have written, then prune. Collective over the group.

    Args:
        share: what this rank has written into ``temporary``.
        temporary: the directory of :func:`begin`.
        description: manifest without tensors and files, which are filled in here.
        run_files: written here, by rank 0.
        retention: which checkpoints to keep.
        group: of :func:`form_commit_group`.

    Returns:
        The published directory; it is there on every rank's return.

    Raises:
        CheckpointError: on rank 0, for a tensor that the ranks did not write completely, when nothing is published, or
            where the file system refuses.
    """
    is_main = dist.get_rank(group) == 0
    shares: list | None = [None] * dist.get_world_size(group) if is_main else None
    dist.gather_object(share, shares, group=group, group_dst=0)
    published = temporary.parent / directories.name_of(description.step)
    if shares is not None:
        with saving(temporary):
            small = run_files.write(temporary)
            manifest = _merge(description, small, shares)
            manifest.check_complete(temporary)
            write_atomically(temporary / MANIFEST_NAME, manifest.to_json().encode())
        with saving(published):
            directories.publish(temporary, description.step)
            prune(temporary.parent, retention)
    dist.barrier(group)
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
