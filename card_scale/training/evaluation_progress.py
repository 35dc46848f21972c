"""How far an evaluation has come, said while somebody waits for it."""

import contextlib
import sys
import time

from tqdm import tqdm

from card_scale import waiting
from card_scale.units import duration


class EvaluationProgress:
    """Counts the batches of an evaluation after ``step`` updates."""

    def __init__(self, step: int, batches: int):
        self._step, self._batches, self._done = step, batches, 0
        self._began = time.monotonic()

    def advance(self) -> None:
        """Count a batch."""
        self._done += 1

    def line(self) -> str:
        """What is being done, in a line."""
        return progress_line(self._step, self._done, self._batches, time.monotonic() - self._began)

    def told(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which it is said now and then, beside the progress bar."""
        return waiting.told(self.line, _print)


def progress_line(step: int, done: int, batches: int, seconds: float) -> str:
    """Return the line after ``done`` batches and so many seconds."""
    left = f", ETA {duration(seconds / done * (batches - done))}" if done else ""
    return f"step {step} | evaluating: {done} of {batches} batches{left}"


def _print(line: str) -> None:
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()
