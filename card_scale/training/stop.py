"""Stop requests: signals, a file or the end of the time, which ask a run to save and end between two updates."""

import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from card_scale.errors import ConfigurationError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""Ctrl-C; a launcher's or scheduler's end; Slurm's early warning (``--signal=USR1@...``); a terminal that has gone."""

ECHO_SECONDS = 1.0

LOOK_SECONDS = 1.0
"""Between two looks for the stop file: a network file system is not asked before every update."""


class TimeLimit(NamedTuple):
    """When to stop at the latest."""

    end: float
    """By the monotonic clock."""
    what: str
    """Whose limit it is."""


def time_limit(
    max_hours: float | None, stop_before_end: float, environment: Mapping[str, str], now: float, clock: float
) -> TimeLimit | None:
    """Return the earlier one of a run's own limit and of its Slurm job's, None without any.

    Args:
        max_hours: ``run.max_hours``.
        stop_before_end: ``run.stop_before_end``: seconds before the job's end, in which to save; at most half of what
            is left.
        environment: SLURM_JOB_END_TIME in it is the job's end, in seconds since 1970.
        now: the same of this moment.
        clock: the monotonic clock at this moment, by which the end is kept.

    Raises:
        ConfigurationError: an end that is no number.
    """
    limits = []
    if max_hours is not None:
        limits.append(TimeLimit(clock + 3600.0 * max_hours, f"run.max_hours {max_hours:g}"))
    if (end := environment.get("SLURM_JOB_END_TIME")) is not None:
        words = f"the end of the Slurm job (run.stop_before_end {stop_before_end:g} seconds before it)"
        if not end.isdecimal():
            raise ConfigurationError(
                f"environment variable SLURM_JOB_END_TIME is {end!r}; valid is a number of seconds"
            )
        left = int(end) - now
        # A job that is not longer than that shall still do something.
        limits.append(TimeLimit(clock + left - min(stop_before_end, left / 2), words))
    return min(limits, default=None)


class StopRequest:
    """Context manager that turns stop signals into a flag.

    Inside it, a signal only sets the flag, so an update or a checkpoint in progress is finished. A second SIGINT raises
    KeyboardInterrupt: somebody at the terminal does not want to wait. One that follows within ``ECHO_SECONDS`` is an
    echo: Ctrl-C reaches a rank from the terminal and, a moment later, from torchrun. The handlers found on entry return
    on exit. Must be entered in the main thread (ValueError otherwise, from Python).

    A file and a time limit ask for a stop too, where :meth:`watch` was told of them.
    """

    def __init__(
        self, passed_on: Callable[[], str | None] = lambda: None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``passed_on`` says for what else a SIGUSR1 stands, None where for itself."""
        self._passed_on = passed_on
        self._clock = clock
        self.reason: str | None = None
        """What asked first, e.g. ``SIGTERM``, as far as anybody has looked."""
        self._file: Path | None = None
        self._looked_at = -LOOK_SECONDS
        self._end: float | None = None
        self._limit = ""
        self._interrupted_at: float | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def watch(self, file: Path, limit: TimeLimit | None) -> None:
        """Also stop when ``file`` appears, or the time is over."""
        self._file = file
        if limit is not None:
            self._end, self._limit = limit

    def poll(self) -> str | None:
        """Look whether a stop is asked for; return by what, None while nothing does."""
        if self.reason is None and (self._file is not None or self._end is not None):
            now = self._clock()
            if self._end is not None and now >= self._end:
                self.reason = self._limit
            elif self._file is not None and now - self._looked_at >= LOOK_SECONDS:
                self._looked_at = now
                if self._file.exists():
                    self.reason = f"the file {self._file}"
        if self.reason == signal.SIGUSR1.name:
            self.reason = self._passed_on() or self.reason
        return self.reason

    def __enter__(self) -> "StopRequest":
        for number in STOP_SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup: the terminal's end is not to matter
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            # None stands for a handler that was not installed from Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            now = self._clock()
            if self._interrupted_at is not None and now - self._interrupted_at > ECHO_SECONDS:
                raise KeyboardInterrupt
            if self._interrupted_at is None:
                self._interrupted_at = now
        if self.reason is None:
            self.reason = signal.Signals(number).name
