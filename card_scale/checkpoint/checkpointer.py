"""Saving: snapshot, write and commit, one after the other, or the last two beside training."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch.distributed as dist

from card_scale.checkpoint.commit import Publication, begin, commit
from card_scale.checkpoint.snapshot import pieces_of, plan_of
from card_scale.checkpoint.write import Piece, Plan, RankShare, write
from card_scale.engine.base import ShardingEngine
from card_scale.errors import CheckpointError

SAVING_THREAD = "checkpoint"
"""Beginning of the name of the thread that saves beside training."""


class Checkpointer:
    """Saves the checkpoints of one run, never two at a time; :meth:`wait` ends one in flight.

    Args:
        root: the run's ``checkpoints`` directory.
        group: a gloo group of all ranks that nothing else uses (commit.form_commit_group).
    """

    def __init__(self, root: Path, group: dist.ProcessGroup):
        self.root, self.group = root, group
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=SAVING_THREAD)
        self._in_flight: Future[Path] | None = None

    def save(self, engine: ShardingEngine, publication: Publication, *, beside_training: bool = False) -> Path | None:
        """Write and publish a checkpoint in logical coordinates. Collective over all ranks.

        Returns:
            Its directory; None ``beside_training``, when the engine may go on as soon as its state has been copied to
            host memory, and :meth:`wait` tells what became of it.

        Raises:
            CheckpointError: on all ranks: of this one, or of the one in flight, which is waited for first.
        """
        self.wait()
        plan, pieces = plan_of(engine, publication.description.step), pieces_of(engine)
        if not beside_training:
            return self._write_and_commit(plan, pieces, publication)
        taken = list(pieces)
        self._in_flight = self._executor.submit(self._write_and_commit, plan, iter(taken), publication)
        return None

    def wait(self) -> Path | None:
        """Wait for the save in flight and return its directory; None where there is none.

        Raises CheckpointError, on all ranks, where it failed: nothing was published.
        """
        if self._in_flight is None:
            return None
        future, self._in_flight = self._in_flight, None
        return future.result()

    def close(self) -> None:
        """Wait for the save in flight, whatever becomes of it, and end the thread."""
        self._executor.shutdown(wait=True)

    def _write_and_commit(self, plan: Plan, pieces: Iterator[Piece], publication: Publication) -> Path:
        temporary = begin(self.root, publication.description.step, self.group)
        written: RankShare | CheckpointError
        try:
            written = write(plan, pieces, temporary)
        except CheckpointError as error:
            written = error
        return commit(written, temporary, publication, self.group)
