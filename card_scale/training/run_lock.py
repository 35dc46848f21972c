"""One job in a run directory: a lock that its owner keeps alive, and that a dead owner's successor takes over.

The file names host, boot and process. On one machine a process is asked for directly; on another its heartbeat, the
time at which the file was last touched, is watched for as long as it may be late: whether it changes, not when,
so that hosts' clocks need not agree.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from card_scale.errors import ForeignRunError
from card_scale.files import replace

HEARTBEAT_SECONDS = 5.0
LATE_SECONDS = 60.0
"""Silence after which the owner on another machine counts as dead: twelve heartbeats."""


class Owner(NamedTuple):
    """Who holds a lock."""

    host: str
    boot: str
    """Of the machine: its processes' numbers begin anew with each."""
    pid: int
    started: int
    """In the machine's clock ticks: a number may be given to another process later."""
    token: str

    @classmethod
    def this_process(cls) -> "Owner":
        """This one."""
        return cls(socket.gethostname(), _boot(), os.getpid(), _started(os.getpid()) or 0, uuid.uuid4().hex)

    @property
    def is_here(self) -> bool:
        """Whether it ran on this machine, in this boot."""
        return (self.host, self.boot) == (socket.gethostname(), _boot())

    @property
    def is_running(self) -> bool:
        """Whether a process of this machine is still there."""
        return _started(self.pid) == self.started


class RunLock:
    """Context manager that holds a directory's lock. Raises ForeignRunError where a living process holds it."""

    def __init__(
        self,
        directory: Path,
        *,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        late_seconds: float = LATE_SECONDS,
        say: Callable[[str], None] = print,
    ):
        """``say`` is told when a silent owner on another machine is waited for."""
        self.path = directory / "run.lock"
        self.heartbeat_seconds, self.late_seconds, self.say = heartbeat_seconds, late_seconds, say
        self.owner: Owner | None = None
        self._ended = threading.Event()
        self._beating: threading.Thread | None = None

    def __enter__(self) -> "RunLock":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.owner = Owner.this_process()
        while not self._create():
            self._remove_dead()
        self._beating = threading.Thread(target=self._beat, name="run-lock", daemon=True)
        self._beating.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._beating is not None:
            self._beating.join()
        if self._read(self.path) == self.owner:
            self.path.unlink(missing_ok=True)

    def check_held(self) -> None:
        """Raise ForeignRunError where another job has taken the lock over, as it may from a process that was suspended
        for long: nothing may be written any more."""
        owner = self._read(self.path)
        if owner != self.owner:
            whose = "is gone" if owner is None else f"belongs to process {owner.pid} on {owner.host}"
            raise ForeignRunError(f"{self.path} {whose}: another job has gone on in this run directory")

    def check_free(self) -> None:
        """Raise ForeignRunError where a process of this machine holds the lock; of another machine one cannot tell."""
        owner = self._read(self.path)
        if owner is not None and owner.is_here and owner.is_running:
            raise ForeignRunError(self._in_use(owner))

    def _create(self) -> bool:
        """Take a free lock; False where there is one."""
        # A link never replaces what is there, and what it makes is whole from the beginning.
        assert self.owner is not None
        mine = self.path.with_name(f"{self.path.name}.{self.owner.token}")
        replace(mine, json.dumps(self.owner._asdict()).encode())
        try:
            os.link(mine, self.path)
        except FileExistsError:
            return False
        finally:
            mine.unlink()
        return True

    def _remove_dead(self) -> None:
        """Remove the lock of a dead owner; wait for the heartbeat of one on another machine."""
        owner, begin = self._read(self.path), time.monotonic()
        if owner is not None and owner.is_here and owner.is_running:
            raise ForeignRunError(self._in_use(owner))
        if owner is None or not owner.is_here:
            if (last := self._beaten()) is None:
                return
            if owner is not None:
                self.say(
                    f"{self.path}: waiting up to {self.late_seconds:.0f} s for a sign of life of process {owner.pid} "
                    f"on {owner.host}"
                )
            while time.monotonic() - begin < self.late_seconds:
                time.sleep(min(self.heartbeat_seconds, self.late_seconds) / 5)
                beaten = self._beaten()
                if beaten is None:
                    return
                if beaten != last:
                    raise ForeignRunError(self._in_use(self._read(self.path)))
        # Whoever renames it first may go on to create; a second one finds a lock that is not the one it has judged.
        dead = self.path.with_name(f"{self.path.name}.dead-{uuid.uuid4().hex}")
        try:
            if self._read(self.path) == owner:
                os.rename(self.path, dead)
                if self._read(dead) != owner:
                    os.link(dead, self.path)
                dead.unlink()
        except (FileNotFoundError, FileExistsError):
            return

    def _in_use(self, owner: Owner | None) -> str:
        whose = "another job" if owner is None else f"process {owner.pid} on {owner.host}"
        return (
            f"run.dir {self.path.parent} is in use by {whose} (its lock: {self.path}). Wait until that job has ended, "
            "or choose another run.dir"
        )

    def _beaten(self) -> int | None:
        """When the lock was last touched, None where it is gone."""
        try:
            return self.path.stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def _beat(self) -> None:
        while not self._ended.wait(self.heartbeat_seconds):
            try:
                owner = self._read(self.path)
                if owner is not None and owner != self.owner:
                    return
                os.utime(self.path)
            except OSError:
                continue  # a file system that is away for a moment: check_held says what came of it

    @staticmethod
    def _read(path: Path) -> Owner | None:
        """The owner that a lock names; None where it is gone or names none."""
        try:
            return Owner(**json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None


def _boot() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text(encoding="ascii").strip() if path.is_file() else "unknown"


def _started(pid: int) -> int | None:
    """When a process of this machine was started, in clock ticks since the boot; None where there is none.

    Where the kernel does not tell (no /proc), 0 for any that is there.
    """
    if not Path("/proc/self/stat").exists():
        return 0 if _exists(pid) else None
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name of the program, in brackets, may hold anything.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
