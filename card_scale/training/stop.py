"""Stop requests: signals that ask a run to save and end, noticed between two updates."""

import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C; a launcher's or scheduler's end; Slurm's early warning (``--signal=USR1@...``)."""


class StopRequest:
    """Context manager that turns stop signals into a flag.

    Inside it, a signal only sets the flag, so an update or a checkpoint in progress is finished. A second SIGINT raises
    KeyboardInterrupt: somebody at the terminal does not want to wait. The handlers found on entry return on exit. Must
    be entered in the main thread (ValueError otherwise, from Python).
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        """Name of the first signal received, e.g. ``SIGTERM``."""
        self._interrupted = False
        self._previous: dict[signal.Signals, object] = {}

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
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
        if self.reason is None:
            self.reason = signal.Signals(number).name
