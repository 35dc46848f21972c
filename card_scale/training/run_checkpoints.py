"""A run's checkpoints: what is kept of it besides the weights, and where it goes on from."""

from pathlib import Path
from typing import NamedTuple

from card_scale.checkpoint.checkpointer import Checkpointer
from card_scale.checkpoint.commit import form_commit_group
from card_scale.checkpoint.format import CheckpointManifest
from card_scale.checkpoint.load import load, load_weights
from card_scale.checkpoint.reader import CheckpointReader
from card_scale.checkpoint.retention import Retention
from card_scale.checkpoint.run_files import RunFiles
from card_scale.config import Config
from card_scale.distributed.parallel_dims import ParallelDims
from card_scale.engine.base import ShardingEngine
from card_scale.environment import library_versions
from card_scale.errors import CheckpointError
from card_scale.objectives.base import Objective
from card_scale.training import initial_weights, resume_point
from card_scale.training.agreement import agree_on_damage, agree_on_resume_point
from card_scale.training.resume_point import VALIDATION_DIGEST
from card_scale.training.run_data import RunData
from card_scale.training.run_lock import RunLock


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


class RunCheckpoints:
    """Saves and resumes one run. Its methods are collective."""

    def __init__(
        self,
        engine: ShardingEngine,
        config: Config,
        dims: ParallelDims,
        data: RunData,
        directory: Path,
        lock: RunLock | None = None,
    ):
        """Collective: the commits get a process group of their own. The rank that holds the run directory's ``lock``
        saves only while it does."""
        self.lock = lock
        self.engine, self.config, self.dims, self.data, self.directory = engine, config, dims, data, directory
        retention = Retention(config.train.keep_last, config.train.keep_every)
        self.checkpointer = Checkpointer(directory, retention, form_commit_group(config.run.timeout_seconds))
        self.saved_step: int | None = None
        """Of the newest checkpoint, None where there is none."""

    def resume(self) -> Start:
        """Load the run's latest complete checkpoint; of a new run the weights that it starts from, if any."""
        objective = self.config.objective
        point = agree_on_resume_point(self.directory)
        if point is None:
            return Start(0, True, objective, f"starting a new run in {self.config.run.dir}{self._initialise()}")
        # By every rank: each may read a copy of the data of its own.
        resume_point.check_same_data(point, self.data)
        with CheckpointReader(point.path, point.manifest) as reader:
            load(self.engine, reader)
        self.saved_step = point.manifest.step
        opening = f"resuming from {point.describe()}"
        return Start(point.manifest.step, False, objective.with_state(point.state), opening)

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

    def save(self, step: int, objective: Objective) -> None:
        """Save after ``step`` updates. Raises ForeignRunError where another job has taken the run directory over."""
        if self.lock is not None:
            self.lock.check_held()
        description = CheckpointManifest(
            step=step,
            state_keys=list(self.engine.state_keys()),
            layout=self.dims.describe(),
            engine=self.config.parallel.engine,
            tokenizer_sha256=self.data.tokenizer_sha256,
            data_digest=self.data.train.manifest.digest,
            versions=library_versions(),
            tensors={},
            files={},
        )
        samples = step * self.config.train.global_batch
        state = {
            "step": step,
            "samples": samples,
            "tokens": samples * self.config.model.length,
            "epoch": samples // self.data.train.sample_count,
            "cursor": samples % self.data.train.sample_count,
            "seed": self.config.run.seed,
            VALIDATION_DIGEST: self.data.validation.manifest.digest,
            **objective.state(),
        }
        run_files = RunFiles(state, self.config.to_yaml(), self.data.train.tokenizer_path)
        self.checkpointer.save(self.engine, description, run_files)
        self.saved_step = step
