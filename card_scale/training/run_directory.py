"""The run directory: what a run leaves on disk beside its checkpoints, and whether a run may continue in it."""

import contextlib
import json
import os
from pathlib import Path

from card_scale import config as configs
from card_scale.config import Config
from card_scale.environment import environment
from card_scale.errors import CheckpointError, ConfigurationError, ExitCode, ForeignRunError
from card_scale.files import read_json, write_atomically, write_json
from card_scale.training import exit_record
from card_scale.training.records import evaluations_of, read_metrics

MAY_CHANGE = {
    "run.dir",
    "run.timeout_seconds",
    "run.max_hours",
    "run.stop_before_end",
    "run.extend",
    "run.ledger",
    "run.wandb",
    "data.path",
    "data.validation",
    "data.validation_samples",
    "data.train_samples",
    "data.skip_damaged",
    "model.attention_backend",
    "model.loss_backend",
    "train.micro_batch",
    "train.log_every",
    "train.eval_every",
    "train.save_every",
    "train.keep_last",
    "train.keep_every",
    "train.async_save",
    "train.failed_saves",
    "watchdog.start",
    "watchdog.data",
    "watchdog.step",
    "watchdog.evaluation",
    "watchdog.save",
    "guard.policy",
    "guard.spike",
    "guard.window",
    "guard.patience",
    "guard.rollbacks",
    "train.compile",
    "parallel.tensor",
    "parallel.pipeline",
    "parallel.virtual_pipeline",
    "parallel.sequence",
    "parallel.engine",
    "parallel.zero",
    "parallel.deepspeed",
    "parallel.recompute",
}
"""Keys that change neither the trajectory nor its data: layout, engine, logging, and what follows an update that would
have ruined it. (The digests of the data are compared: training/resume_point.py.)"""

EVALUATION = {"data.validation", "data.validation_samples", "data.train_samples", "train.eval_every"}
"""Those of them that say what is evaluated and when; where training takes over what an evaluation finds, they do change
the trajectory."""

LENGTH = {"train.steps", "data.epochs"}
"""Keys that may change where the learning rate does not depend on the run's length, or by ``run.extend``."""


class RunDirectory:
    """Paths of a run, and the small files written at its start and end (by rank 0, unless said otherwise)."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.ledger = self.path / "ledger"
        self.config = self.path / "config.yaml"
        self.exit = self.path / exit_record.NAME
        self.stop = self.path / "STOP"
        self.saved = self.path / "saved.json"
        self.silent = self.path / "silent"
        self.anew = self.path / "begun-anew.json"
        self.wandb_id = self.path / "wandb-id.txt"

    def check_same_run(self, config: Config) -> None:
        """Raise ForeignRunError, naming each key and both values, if the directory is another configuration's."""
        if not self.config.is_file():
            return
        try:
            before = configs.load(self.config, [])
        except ConfigurationError as error:
            raise ForeignRunError(f"run.dir {self.path} holds an unreadable configuration: {error}") from None
        may_be_longer = config.run.extend or config.optimizer.schedule == "constant"
        allowed = MAY_CHANGE | (LENGTH if may_be_longer else set())
        if config.objective.learns_from_evaluation:
            allowed -= EVALUATION
        differences = [
            f"{key} is {now!r}, the run there has {then!r}"
            for key, (then, now) in _differences(before, config).items()
            if key not in allowed
        ]
        if differences:
            raise ForeignRunError(
                f"run.dir {self.path} belongs to another configuration: {'; '.join(differences)}. "
                "Choose another run.dir, or restore the values; run.extend=true lets a run become longer, "
                "run.init_from=CHECKPOINT starts a new one from its weights"
            )

    def check_usable(self) -> None:
        """Raise ConfigurationError where the directory cannot be made or written in."""
        existing = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        if not existing.is_dir():
            raise ConfigurationError(f"run.dir {self.path} cannot be used: {existing} is a file")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise ConfigurationError(f"run.dir {self.path} cannot be used: {existing} must not be written in")

    def take(self) -> None:
        """Forget how an earlier command ended, and whether it was asked to stop; for who holds the lock."""
        self.stop.unlink(missing_ok=True)
        self.exit.unlink(missing_ok=True)

    def start(self, config: Config) -> None:
        """Write the resolved configuration and the environment."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        # Atomically: a resume that is killed here must find its configuration again.
        write_atomically(self.config, config.to_yaml().encode())
        write_json(self.path / "environment.json", environment())

    def note_saved(self, step: int) -> None:
        """Note outside of the checkpoints that there are some: without them a run is not begun anew unasked."""
        with contextlib.suppress(OSError):  # the disk has filled since; the checkpoint itself is there
            write_atomically(self.saved, json.dumps({"step": step}).encode())

    def check_nothing_saved(self) -> None:
        """Raise CheckpointError where the run has saved checkpoints. To be asked where there are none."""
        if self.saved.is_file():
            raise CheckpointError(
                f"run.dir {self.path} has saved checkpoints ({self.saved.name}: {self.saved.read_text().strip()}), but "
                f"{self.checkpoints} holds none. Bring them back, or begin anew with --from-scratch"
            )

    def set_aside(self) -> Path | None:
        """Move all that a run has left here into a directory of its own inside; return that, None without a run."""
        left = [path for path in self._of_a_run() if path.exists()]
        if not left:
            return None
        earlier = (path.name.removeprefix("before-") for path in self.path.glob("before-*"))
        number = 1 + max((int(name) for name in earlier if name.isdecimal()), default=0)
        aside = self.path / f"before-{number:04d}"
        aside.mkdir()
        # The configuration goes last: as long as it is here, the directory is still that run's.
        for path in left:
            path.rename(aside / path.name)
        return aside

    def note_begun_anew(self, job: str | None) -> None:
        """Note which job has set aside what was here, so that its restart does not do so again."""
        write_atomically(self.anew, json.dumps({"job": job}).encode())

    def was_begun_anew_by(self, job: str) -> bool:
        """Whether that job has set aside what was here."""
        try:
            return json.loads(self.anew.read_text(encoding="utf-8"))["job"] == job
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return False

    def _of_a_run(self) -> tuple[Path, ...]:
        others = (self.path / name for name in ("environment.json", "ledger", "wandb", self.wandb_id.name))
        return (self.checkpoints, self.metrics, self.tensorboard, self.exit, self.saved, *others, self.config)

    def is_evaluated(self, step: int) -> bool:
        """Whether an evaluation after ``step`` updates is recorded."""
        return any(record["step"] == step for record in evaluations_of(read_metrics(self.metrics)))

    def read_exit(self) -> tuple[int, str] | None:
        """Return code and reason of ``exit.json``, None where there is none."""
        if not self.exit.is_file():
            return None
        record = read_json(self.exit)
        return record["code"], record["reason"]

    def write_exit(self, code: ExitCode | int, reason: str, earlier: bytes | None = None) -> None:
        """Record how the command ended, see :func:`card_scale.training.exit_record.write`."""
        exit_record.write(self.exit, code, reason, earlier)


def _differences(before: Config, after: Config) -> dict[str, tuple[object, object]]:
    """Return {dotted key: (value before, value after)} of the keys that differ; of another objective its name alone."""
    old, new = before.flat(), after.flat()
    return {key: (old[key], new[key]) for key in old if key in new and old[key] != new[key]}
