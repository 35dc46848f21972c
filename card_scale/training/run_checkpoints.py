"""A run's checkpoints: what is kept of it besides the weights, and where it goes on from."""

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from card_scale.checkpoint.checkpointer import Checkpointer
from card_scale.checkpoint.commit import Publication, form_commit_group
from card_scale.checkpoint.format import CheckpointManifest
from card_scale.checkpoint.load import load, load_weights
from card_scale.checkpoint.reader import CheckpointReader
from card_scale.checkpoint.retention import Retention, remove_unfinished
from card_scale.checkpoint.run_files import RunFiles
from card_scale.config import Config
from card_scale.distributed import process_groups
from card_scale.distributed.parallel_dims import ParallelDims
from card_scale.engine.base import ShardingEngine
from card_scale.environment import library_versions
from card_scale.errors import CheckpointError, NumericError
from card_scale.objectives.base import Objective
from card_scale.training import initial_weights, resume_point
from card_scale.training.agreement import agree_on_damage, agree_on_resume_point
from card_scale.training.guard import RollBack, applied_updates
from card_scale.training.resume_point import VALIDATION_DIGEST
from card_scale.training.run_data import RunData
from card_scale.training.run_directory import RunDirectory
from card_scale.training.run_lock import RunLock

PASSED_OVER = "passed_over_batches"
"""Key of a checkpoint's state."""


class Start(NamedTuple):
    """Where a run begins."""

    step: int
    """Updates already made."""
    is_new: bool
    """Whether nothing of it was done before."""
    objective: Objective
    """The configured objective, with what the run has found for it."""
    opening: str
    """What to tell the user."""
    state: Mapping[str, Any]
    """The checkpoint's small state; empty for a new run."""
    left_out: int = 0
    """Batches that are passed over from here on, beyond those that the checkpoint has."""

    @property
    def passed_over(self) -> int:
        """Batches that the run has passed over: its update k trains on batch k + so many."""
        return int(self.state.get(PASSED_OVER, 0))


class RunCheckpoints:
    """Saves and resumes one run. Its methods are collective, but for :meth:`close`."""

    def __init__(
        self,
        engine: ShardingEngine,
        config: Config,
        dims: ParallelDims,
        data: RunData,
        directory: RunDirectory,
        lock: RunLock | None = None,
    ):
        """Collective: the commits get a process group of their own. The rank that holds the run directory's ``lock``
        publishes only while it does."""
        self.lock = lock
        self.engine, self.config, self.dims, self.data, self.directory = engine, config, dims, data, directory
        # A rank may wait that long for the slowest writer.
        group = form_commit_group(max(config.run.timeout_seconds, config.watchdog.save))
        self.checkpointer = Checkpointer(directory.checkpoints, group)
        self.saved_step: int | None = None
        """Of the newest checkpoint, None where there is none."""
        self._step_in_flight: int | None = None
        self._refused_saves = 0
        """In a row."""

    def resume(self) -> Start:
        """Load the run's latest complete checkpoint; of a new run the weights that it starts from, if any."""
        objective = self.config.objective
        if process_groups.is_main_rank():
            remove_unfinished(self.directory.checkpoints)
        point = agree_on_resume_point(self.directory.checkpoints)
        if point is None:
            process_groups.by_main_rank(self.directory.check_nothing_saved)
            opening = f"starting a new run in {self.config.run.dir}{self._initialise()}"
            return Start(0, True, objective, opening, {})
        # By every rank: each may read a copy of the data of its own.
        resume_point.check_same_data(point, self.data)
        with CheckpointReader(point.path, point.manifest) as reader:
            load(self.engine, reader, applied_updates(point.state, point.manifest.step))
        self.saved_step = point.manifest.step
        opening = f"resuming from {point.describe()}"
        return Start(point.manifest.step, False, objective.with_state(point.state), opening, point.state)

    def roll_back(self, bad: RollBack, passed_over: int) -> Start:
        """Load the last checkpoint; the batches from there up to the bad update are passed over.

        ``passed_over``: batches up to now. Raises NumericError where there is no checkpoint.
        """
        self.wait()
        if self.saved_step is None:
            raise NumericError(f"{bad}, and there is no checkpoint to go back to. Lower optimizer.lr")
        start = self.resume()
        left_out = bad.step - start.step
        state = {**start.state, PASSED_OVER: passed_over + left_out}
        opening = f"{bad}: going back to step {start.step}, passing over {left_out} batches"
        return start._replace(opening=opening, state=state, left_out=passed_over + left_out - start.passed_over)

    def _initialise(self) -> str:
        """Load ``run.init_from``, if it is set; say so."""
        found = initial_weights.find(self.config, self.data)
        if found is None:
            return ""
        if problems := agree_on_damage(*found):
            raise CheckpointError(f"run.init_from: {'; '.join(problems)}")
        with CheckpointReader(*found) as reader:
            load_weights(self.engine, reader)
        return f", from the weights of {found[0]}"

    def save(self, step: int, objective: Objective, found: Mapping[str, Any], passed_over: int, *, must: bool) -> None:
        """Save after ``step`` updates.

        Args:
            step: updates made.
            objective: with what the run has found for it.
            found: what the guard has, for its state.
            passed_over: batches that the run has passed over.
            must: wait for it, and raise where it fails; else training may go on without it.

        Raises:
            CheckpointError: on all ranks: it must be saved and cannot, or too many in a row could not.
            ForeignRunError: on all ranks: another job has taken the run directory over.
        """
        try:
            self.wait()
        except CheckpointError as error:
            if not must:
                raise
            self._warn(f"{error}; this one is tried all the same")
        publication = self._publication(step, objective, found, passed_over)
        try:
            published = self.checkpointer.save(
                self.engine, publication, beside_training=self.config.train.async_save and not must
            )
        except CheckpointError as error:
            if must:
                raise
            self._bear(error)
            return
        if published is None:
            self._step_in_flight = step
        else:
            self._note_saved(step)

    def _publication(self, step: int, objective: Objective, found: Mapping[str, Any], passed_over: int) -> Publication:
        """Return what a save publishes beside the tensors."""
        config = self.config
        description = CheckpointManifest(
            step=step,
            state_keys=list(self.engine.state_keys()),
            layout=self.dims.describe(),
            engine=config.parallel.engine,
            tokenizer_sha256=self.data.tokenizer_sha256,
            data_digest=self.data.train.manifest.digest,
            versions=library_versions(),
            tensors={},
            files={},
        )
        read = (step + passed_over) * config.train.global_batch
        state = {
            "step": step,
            "samples": step * config.train.global_batch,
            "tokens": step * config.train.global_batch * config.model.length,
            "epoch": read // self.data.train.sample_count,
            "cursor": read % self.data.train.sample_count,
            "seed": config.run.seed,
            PASSED_OVER: passed_over,
            VALIDATION_DIGEST: self.data.validation.manifest.digest,
            **found,
            **objective.state(),
        }
        return Publication(
            description,
            RunFiles(state, config.to_yaml(), self.data.train.tokenizer_path),
            Retention(config.train.keep_last, config.train.keep_every),
            (lambda: None) if self.lock is None else self.lock.check_held,
        )

    def wait(self) -> None:
        """Wait for a save in flight. Raises as :meth:`save` does."""
        step, self._step_in_flight = self._step_in_flight, None
        try:
            self.checkpointer.wait()
        except CheckpointError as error:
            self._bear(error)
            return
        if step is not None:
            self._note_saved(step)

    def close(self) -> None:
        """Wait for a save in flight, whatever becomes of it."""
        self.checkpointer.close()

    def _note_saved(self, step: int) -> None:
        self.saved_step, self._refused_saves = step, 0
        if process_groups.is_main_rank():
            self.directory.note_saved(step)

    def _bear(self, error: CheckpointError) -> None:
        """Go on without a checkpoint, if there have not been too many."""
        self._refused_saves += 1
        if self._refused_saves > self.config.train.failed_saves:
            raise error
        self._warn(f"{error}; training goes on, the next save is tried")

    def _warn(self, text: str) -> None:
        if process_groups.is_main_rank():
            print(f"warning: {text}", file=sys.stderr, flush=True)
