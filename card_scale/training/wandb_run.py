"""A run's scalars on Weights & Biases, where ``run.wandb`` names a project."""

import importlib
import queue
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from card_scale.files import write_atomically
from card_scale.training.curves import scalars
from card_scale.training.run_directory import RunDirectory

CLOSE_SECONDS = 15.0
"""For which the end of a run waits for the rest to be sent: torchrun kills a process 30 seconds after asking it to end,
and ``exit.json`` is still to be written then."""


class WandbRecorder:
    """Sends records to W&B; used by one rank only.

    All of it happens in a thread of its own: the library talks to a service over the network, and no wait for it, nor
    any error of it, may reach training. What fails is said once and ends the sending until the next start.
    """

    def __init__(
        self,
        project: str,
        directory: RunDirectory,
        *,
        config: Mapping[str, object],
        is_bound: bool,
        is_new: bool,
        say: Callable[[str], None],
    ):
        """Begin to send.

        Args:
            project: of W&B, made there where it is missing.
            directory: of the run, which keeps the id under which a resumed run goes on, and W&B's own files.
            config: what is shown as the run's configuration.
            is_bound: whether the objective's likelihood is a bound.
            is_new: whether the run begins: under a new id.
            say: takes a warning; called in the thread.
        """
        self._project, self._directory, self._config = project, directory, config
        self._is_bound, self._is_new, self._say = is_bound, is_new, say
        self._waiting: queue.SimpleQueue[dict[str, float] | int] = queue.SimpleQueue()
        """What is to be logged, at last the exit code."""
        self._thread = threading.Thread(target=self._send, name="wandb", daemon=True)
        self._thread.start()

    def write(self, record: Mapping[str, Any]) -> None:
        """Send a training or evaluation record, under TensorBoard's tags and with ``step``."""
        if self._thread.is_alive():
            self._waiting.put({"step": record["step"], **scalars(record, is_bound=self._is_bound)})

    def close(self, *, is_done: bool) -> None:
        """End W&B's run, as finished where the run ``is_done``, and wait for what is still to be sent, up to
        CLOSE_SECONDS."""
        self._waiting.put(0 if is_done else 1)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._say(f"warning: run.wandb: not everything was sent within {CLOSE_SECONDS:.0f} s")

    def _send(self) -> None:
        try:
            run = self._begin()
            while not isinstance(item := self._waiting.get(), int):
                run.log(item)
            run.finish(exit_code=item)
        except Exception as error:
            # The client of a service on the network may raise anything, and nothing depends on it.
            self._say(f"warning: run.wandb: {type(error).__name__}: {error}; nothing more is sent until the next start")

    def _begin(self) -> Any:
        wandb = importlib.import_module("wandb")
        run = wandb.init(
            project=self._project,
            id=self._id(self._directory.wandb_id),
            resume="allow",
            name=self._directory.path.resolve().name,
            dir=str(self._directory.path),
            config=dict(self._config),
            settings=wandb.Settings(console="off", quiet=True),  # what the command prints is its own
        )
        # A run that resumes makes some steps again, which W&B's own counter would refuse.
        run.define_metric("*", step_metric="step")
        return run

    def _id(self, path: Path) -> str:
        if self._is_new or not path.is_file():
            write_atomically(path, uuid.uuid4().hex[:8].encode())
        return path.read_text(encoding="utf-8")
