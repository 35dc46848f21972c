"""Saving: snapshot, write and commit, one after the other."""

from pathlib import Path

import torch.distributed as dist

from card_scale.checkpoint.commit import begin, commit
from card_scale.checkpoint.format import CheckpointManifest
from card_scale.checkpoint.retention import Retention
from card_scale.checkpoint.run_files import RunFiles
from card_scale.checkpoint.snapshot import snapshot
from card_scale.checkpoint.write import write
from card_scale.engine.base import ShardingEngine


class Checkpointer:
    """Saves the checkpoints of one run.

    Args:
        root: the run's ``checkpoints`` directory.
        retention: which checkpoints to keep.
        group: a gloo group of all ranks that nothing else uses (commit.form_commit_group).
    """

    def __init__(self, root: Path, retention: Retention, group: dist.ProcessGroup):
        self.root, self.retention, self.group = root, retention, group

    def save(self, engine: ShardingEngine, description: CheckpointManifest, run_files: RunFiles) -> Path:
        """Write and publish a checkpoint in logical coordinates; return its directory. Collective over all ranks.

        ``description`` is a manifest without tensors and files, which are filled in.
        """
        taken = snapshot(engine)
        temporary = begin(self.root, description.step, self.group)
        share = write(taken, temporary)
        return commit(share, temporary, description, run_files, self.retention, self.group)
