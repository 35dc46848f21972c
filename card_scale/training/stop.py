"""Stop requests: signals that ask a run to save and end, noticed between two updates."""

import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C; a launcher's or scheduler's end; Slurm's early warning (``--signal=USR1@...``)."""

ECHO_SECONDS = 1.0


class StopRequest:
    """Context manager that turns stop signals into a flag.

    Inside it, a signal only sets the flag, so an update or a checkpoint in progress is finished. A second SIGINT raises
    KeyboardInterrupt: somebody at the terminal does not want to wait. One that follows within ``ECHO_SECONDS`` is an
    echo: Ctrl-C reaches a rank from the terminal and, a moment later, from torchrun. The handlers found on entry return
    on exit. Must be entered in the main thread (ValueError otherwise, from Python).
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.reason: str | None = None
        """Name of the first signal received, e.g. ``SIGTERM``."""
        self._interrupted_at: float | None = None
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a stop was asked for."""
        return self.reason is not None

    def __enter__(self) -> "StopRequest":
        for number in STOP_SIGNALS:
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
