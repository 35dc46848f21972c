"""How far a task has come: what its run directory and the runner's own record say, and whether it is alive.

A process that is killed leaves no ``exit.json``, so whoever starts a task writes an outcome beside the runs: one file a
task, begun without a code and completed when the process has ended. A lock on an open file, which the process inherits,
says that it is still alive, whatever happened to its runner.
"""

import fcntl
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from card_scale.errors import ConfigurationError, ExitCode
from card_scale.files import read_json
from card_scale.files import replace as replace_file
from card_scale.studies.tasks import Task
from card_scale.training.run_directory import RunDirectory

Status = Literal["done", "failed", "stopped", "running", "pending"]


@dataclass(frozen=True)
class Outcome:
    """What is known of a task's attempts."""

    code: int | None
    """Exit code of the last attempt; None while it runs, or if its runner did not live to see the end."""
    reason: str
    attempts: int = 0
    seconds: float = 0.0
    """Wall time of all attempts that were seen to end."""

    @property
    def status(self) -> Status:
        """The status of a task that is not running."""
        if self.code == ExitCode.DONE:
            return "done"
        return "failed" if self.code not in (None, ExitCode.STOPPED) else "stopped" if self.attempts else "pending"


class StudyDirectory:
    """Paths of a study: its plan, its runs' directories, logs, outcomes and locks."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def log(self, task: Task) -> Path:
        """Return where the output of a task's processes is kept."""
        return self.path / "logs" / f"{task.id}.log"

    def outcome(self, task: Task) -> Outcome:
        """Return what is known of a task, the run's own ``exit.json`` included where no runner recorded the end."""
        path = self._outcome(task)
        if not path.is_file():
            return Outcome(None, "")
        outcome = Outcome(**read_json(path))
        if outcome.code is None:
            # Whoever starts a task removes exit.json first: this one is of the last attempt.
            ended = RunDirectory(task.directory).read_exit()
            return outcome if ended is None else replace(outcome, code=ended[0], reason=ended[1])
        return outcome

    def record(self, task: Task, outcome: Outcome) -> None:
        """Write what is known of a task."""
        path = self._outcome(task)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, (json.dumps(asdict(outcome), indent=1) + "\n").encode())

    def status(self, task: Task) -> Status:
        """Return a task's status."""
        lock = self.lock(task)
        if lock is None:
            return "running"
        lock.release()
        return self.outcome(task).status

    def lock(self, task: Task) -> "Lock | None":
        """Take the lock of a task's run directory; None while a process holds it."""
        return Lock.take(self.path / "locks" / f"{task.directory.name}.lock")

    def runner_lock(self) -> "Lock":
        """Take the study's lock. Raises ConfigurationError, naming the process, while another runner holds it."""
        path = self.path / "locks" / "runner.lock"
        lock = Lock.take(path)
        if lock is None:
            holder = path.read_text(encoding="utf-8").strip() or "unknown"
            raise ConfigurationError(f"another runner ({holder}) works on {self.path}; let it end, or stop it")
        lock.write(f"process {os.getpid()} on {os.uname().nodename}")
        return lock

    def _outcome(self, task: Task) -> Path:
        return self.path / "outcomes" / f"{task.id}.json"


class Lock:
    """An exclusive lock on an open file, held by every process that inherits the descriptor."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor

    @classmethod
    def take(cls, path: Path) -> "Lock | None":
        """Return the lock, or None if it is held elsewhere."""
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return cls(descriptor)

    def write(self, text: str) -> None:
        """Say in the file who holds the lock."""
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, f"{text}\n".encode(), 0)

    def release(self) -> None:
        """Close this process's descriptor; the lock ends with its last holder."""
        os.close(self.descriptor)
