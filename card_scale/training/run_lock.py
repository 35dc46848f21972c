"""One job in a run directory: a lock that its owner keeps alive, and that a dead owner's successor takes over.

The file names host, boot and process. On one machine a process is asked for directly; on another its heartbeat, the
time at which the file was last touched, is watched for as long as it may be late: whether it changes, not when,
so that hosts' clocks need not agree.
"""

import errno
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
    namespace: str
    """In which the process has its number: containers on one machine may have one each."""
    pid: int
    started: int
    """In the machine's clock ticks: a number may be given to another process later."""
    token: str

    @classmethod
    def this_process(cls) -> "Owner":
        """This one."""
        started = _started(os.getpid()) or 0
        return cls(socket.gethostname(), _boot(), pid_namespace(), os.getpid(), started, uuid.uuid4().hex)

    @property
    def is_here(self) -> bool:
        """Whether it ran on this machine, in this boot, among the processes that this one sees."""
        return (self.host, self.boot, self.namespace) == (socket.gethostname(), _boot(), pid_namespace())

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
        while not (self._create(self.path) or self._take_over()):
            pass
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
        owner = chain[-1][1] if (chain := self._chain()) else None
        if owner is not None and owner.is_here and owner.is_running:
            raise ForeignRunError(self._in_use(owner))

    def _create(self, path: Path) -> bool:
        """Make a file that names this process; False where there is one of that name."""
        assert self.owner is not None
        content = json.dumps(self.owner._asdict()).encode()
        mine = path.with_name(f"{path.name}.{self.owner.token}")
        replace(mine, content)
        try:
            # A link never replaces what is there, and what it makes is whole from the beginning.
            os.link(mine, path)
        except FileExistsError:
            # A network file system may have made it, lost the answer and tried again.
            return mine.stat().st_nlink == 2
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            return _create_without_links(path, content)
        finally:
            mine.unlink()
        return True

    def _take_over(self) -> bool:
        """Succeed a dead owner; False where the lock has changed meanwhile, so that all is to be looked at again.

        Raises ForeignRunError where the owner lives. Whoever is the first to make the file that is named after the dead
        owner succeeds it, and one that dies before it has put its own lock in place is succeeded the same way.
        """
        chain = self._chain()
        if not chain or not self._is_dead(*chain[-1]):
            return False
        claim = self._claim_on(*chain[-1])
        if not self._create(claim):
            return False
        if self._chain() != [*chain, (claim, self.owner)]:
            # The dead one had been succeeded, and the successor's claim removed, before this one was made.
            claim.unlink()
            return False
        assert self.owner is not None
        replace(self.path, json.dumps(self.owner._asdict()).encode())
        for path in (*(path for path, _ in chain[1:]), claim):
            path.unlink(missing_ok=True)
        return True

    def _chain(self) -> list[tuple[Path, Owner | None]]:
        """The lock, then claims, each on the owner before; the last one's owner holds it. Empty where it is free."""
        found: list[tuple[Path, Owner | None]] = []
        path = self.path
        while path.exists():
            found.append((path, self._read(path)))
            path = self._claim_on(*found[-1])
        return found

    def _claim_on(self, path: Path, owner: Owner | None) -> Path:
        """Where who succeeds the owner of a file makes its own; of one that is unreadable by when it was written."""
        whose = f"unreadable-{self._beaten(path)}" if owner is None else owner.token
        return self.path.with_name(f"{self.path.name}.after-{whose}")

    def _is_dead(self, path: Path, owner: Owner | None) -> bool:
        """Whether the owner that a file names is dead, after waiting for the heartbeat of one that may not be asked;
        False where the file is gone. Raises ForeignRunError where it lives."""
        if owner is not None and owner.is_here:
            if owner.is_running:
                raise ForeignRunError(self._in_use(owner))
            return True
        begin, last = time.monotonic(), self._beaten(path)
        if owner is not None and last is not None:
            self.say(
                f"{path}: waiting up to {self.late_seconds:.0f} s for a sign of life of process {owner.pid} "
                f"on {owner.host}"
            )
        while last is not None and time.monotonic() - begin < self.late_seconds:
            time.sleep(min(self.heartbeat_seconds, self.late_seconds) / 5)
            beaten = self._beaten(path)
            if beaten is not None and beaten != last:
                raise ForeignRunError(self._in_use(self._read(path)))
            last = beaten
        return last is not None

    def _in_use(self, owner: Owner | None) -> str:
        whose = "another job" if owner is None else f"process {owner.pid} on {owner.host}"
        return (
            f"run.dir {self.path.parent} is in use by {whose} (its lock: {self.path}). Wait until that job has ended, "
            "or choose another run.dir"
        )

    @staticmethod
    def _beaten(path: Path) -> int | None:
        """When a file was last touched, None where it is gone."""
        try:
            return path.stat().st_mtime_ns
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


def pid_namespace() -> str:
    """Return in which namespace this process has its number: containers on one machine may have one each."""
    path = "/proc/self/ns/pid"
    return os.readlink(path) if os.path.exists(path) else "unknown"


def _boot() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text(encoding="ascii").strip() if path.is_file() else "unknown"


def _create_without_links(path: Path, content: bytes) -> bool:
    """Make a file on a file system that has no links; False where there is one. Readers may see it empty first."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    return True


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
