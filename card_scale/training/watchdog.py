"""The watchdog: a rank that makes no progress for too long is named, every rank's stacks are shown, the job ends.

Nothing is exchanged while all is well. A rank that has been silent for half of the shortest limit leaves a file in
the run directory that says where it is; one that reaches its limit reads them all. Whoever has left none cannot even
run this thread: its process is stopped or holds the interpreter. Otherwise the others wait for the rank that has come
least far, or of those that have come as far for the one that is not itself waiting in a collective.
"""

import contextlib
import faulthandler
import io
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from card_scale.checkpoint.checkpointer import SAVING_THREAD
from card_scale.config import WatchdogConfig
from card_scale.files import replace
from card_scale.training.run_lock import pid_namespace

STACKS_SIGNAL = signal.SIGUSR2
"""Makes a rank show the stacks of its threads, whatever it is doing."""

_COLLECTIVE = re.compile(r"distributed_c10d\.py|_functional_collectives\.py|p2p_communication\.py|\.wait\b")
"""What stands in one of the innermost frames of a thread that waits in a collective, or for one's handle."""
_INNERMOST = 4

_WRITER = "checkpointer.py"
"""What stands in a frame of the saving thread while it saves."""

_LOOKS_PER_LIMIT = 20
_SUSPENDED_INTERVALS = 5
"""Looks that this thread has missed when the process must have been stopped."""


class Peer(NamedTuple):
    """Where a rank runs."""

    host: str
    namespace: str
    pid: int

    @classmethod
    def this_process(cls) -> "Peer":
        """This one."""
        return cls(socket.gethostname(), pid_namespace(), os.getpid())


class Watchdog:
    """Context manager that watches the thread which calls :meth:`enter` and :meth:`beat`.

    Args:
        directory: where silent ranks leave their files.
        limits: seconds of silence by phase.
        timeout_seconds: ``run.timeout_seconds``, from which limits that are not set follow.
        rank: this one.
        peers: all ranks, in order.
        end: ends the process, given the reason; called in the watchdog's thread.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        directory: Path,
        limits: WatchdogConfig,
        timeout_seconds: int,
        rank: int,
        peers: Sequence[Peer],
        end: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ):
        self.directory, self.rank, self.peers, self.end, self.clock = directory, rank, peers, end, clock
        self.limits = limits.seconds(timeout_seconds)
        self.place = ("start", 0)
        self._beats, self._last = 0, clock()
        self._watched = threading.get_ident()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        # Both may lack a descriptor under a test or a notebook.
        with contextlib.suppress(io.UnsupportedOperation):
            faulthandler.register(STACKS_SIGNAL, file=sys.stderr, all_threads=True)
        self._take_back()  # of an earlier process
        self._last = self.clock()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._take_back()

    def enter(self, phase: str, step: int) -> None:
        """Say what comes now: a phase of the limits, of update ``step``."""
        self.place = (phase, step)
        self.beat()

    def beat(self) -> None:
        """Say that there is progress."""
        self._beats += 1
        self._last = self.clock()

    def _watch(self) -> None:
        # Early enough for any rank's limit: the one that ends the job, in another phase, must find what all have told.
        tells_after = min(self.limits.values()) / 2
        interval = min(self.limits.values()) / _LOOKS_PER_LIMIT
        told = False
        looked = self.clock()
        while not self._ended.wait(interval):
            now = self.clock()
            if now - looked > _SUSPENDED_INTERVALS * interval:
                self._last = now  # the whole process was suspended
            looked = now
            silent, limit = now - self._last, self.limits[self.place[0]]
            if silent < tells_after:
                if told:
                    self._take_back()
                told = False
                continue
            mine = self._told(silent)
            with contextlib.suppress(OSError):  # a file system that refuses must not end the watch
                self.directory.mkdir(parents=True, exist_ok=True)
                replace(self._file(self.rank), json.dumps(mine, indent=1).encode())
            told = True
            if silent >= limit:
                reason = self._reason(mine, limit)  # before a stopped process is made to go on
                self._show_stacks(mine)
                self.end(reason)
                return

    def _told(self, silent: float) -> dict[str, Any]:
        """What this rank says of itself."""
        phase, step = self.place
        stack = self._stack(phase)
        waits = phase != "data" and any(_COLLECTIVE.search(frame) for frame in stack[-_INNERMOST:])
        return {
            "rank": self.rank,
            "phase": phase,
            "step": step,
            "beats": self._beats,
            "silent_seconds": silent,
            "in_collective": waits,
            "stack": stack,
        }

    def _take_back(self) -> None:
        with contextlib.suppress(OSError):
            self._file(self.rank).unlink(missing_ok=True)

    def _reason(self, mine: dict[str, Any], limit: float) -> str:
        """Return whom the job waits for, as far as the files tell."""
        told = {rank: held for rank in range(len(self.peers)) if (held := self._read(rank)) is not None}
        told[self.rank] = mine
        key = f"limit of {limit:.0f} s (watchdog.{mine['phase']})"
        waited = f"{mine['silent_seconds']:.0f} s in {_place(mine)}, {key}"
        if mute := [rank for rank in range(len(self.peers)) if rank not in told]:
            who = ", ".join(f"rank {rank} (process {self.peers[rank].pid} on {self.peers[rank].host})" for rank in mute)
            return (
                f"{who} gave no sign of life: stopped, gone, or holding the interpreter. Rank {self.rank} has waited "
                f"for {waited}"
            )
        least = min((held["beats"], held["in_collective"]) for held in told.values())
        behind = [rank for rank, held in told.items() if (held["beats"], held["in_collective"]) == least]
        if len(behind) == len(told) and len(told) > 1:
            return f"all ranks have been silent for {waited}"
        who = ", ".join(f"rank {rank} hangs in {_place(told[rank])}" for rank in sorted(behind))
        return f"{who} for {told[behind[0]]['silent_seconds']:.0f} s, {key}"

    def _show_stacks(self, mine: dict[str, Any]) -> None:
        """Show this rank's stack, and have those ranks of this machine show theirs that cannot themselves."""
        print(f"rank {self.rank} is silent in {_place(mine)}:\n{''.join(mine['stack'])}", file=sys.stderr, flush=True)
        here = Peer.this_process()
        for rank, peer in enumerate(self.peers):
            is_here = (peer.host, peer.namespace) == (here.host, here.namespace)
            if is_here and rank != self.rank and self._read(rank) is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(peer.pid, STACKS_SIGNAL)
                    os.kill(peer.pid, signal.SIGCONT)  # a stopped one shows nothing

    def _stack(self, phase: str) -> list[str]:
        """The watched thread's frames, the innermost last; while a checkpoint is waited for, its writer's."""
        frames = sys._current_frames()
        if phase == "save":
            for thread in threading.enumerate():
                if thread.name.startswith(SAVING_THREAD) and thread.ident in frames:
                    stack = traceback.format_stack(frames[thread.ident])
                    if any(_WRITER in frame for frame in stack):
                        return stack
        frame = frames.get(self._watched)
        return [] if frame is None else traceback.format_stack(frame)

    def _file(self, rank: int) -> Path:
        return self.directory / f"rank{rank:04d}.json"

    def _read(self, rank: int) -> dict | None:
        try:
            return json.loads(self._file(rank).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None


def _place(told: dict) -> str:
    return f"the {told.get('phase')} phase of step {told.get('step')}"
