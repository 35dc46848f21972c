"""How far an evaluation has come, said while somebody waits for it."""

import sys
import threading
import time
from collections.abc import Callable

from tqdm import tqdm

from card_scale.training.console import duration

FIRST_SECONDS, LONGEST_SECONDS = 2.0, 60.0
"""Until the first word; between two words at most. The pause doubles."""


class EvaluationProgress:
    """Context manager that says now and then how many batches of an evaluation are done.

    From a thread, since the first batch may be what takes long; whoever evaluates only counts.
    """

    def __init__(
        self,
        step: int,
        batches: int,
        *,
        speaks: bool,
        say: Callable[[str], None] | None = None,
        first_seconds: float = FIRST_SECONDS,
    ):
        """Prepare.

        Args:
            step: updates made before the evaluation.
            batches: that it takes.
            speaks: whether anything is said; one rank does.
            say: takes a line; by default it is printed beside the progress bar.
            first_seconds: until the first word.
        """
        self.step, self.batches, self.done = step, batches, 0
        self._say = _print if say is None else say
        self._pause = first_seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="evaluation-progress", daemon=True) if speaks else None

    def __enter__(self) -> "EvaluationProgress":
        self._began = time.monotonic()
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def advance(self) -> None:
        """Count a batch."""
        self.done += 1

    def _watch(self) -> None:
        while not self._ended.wait(self._pause):
            self._say(progress_line(self.step, self.done, self.batches, time.monotonic() - self._began))
            self._pause = min(2 * self._pause, LONGEST_SECONDS)


def progress_line(step: int, done: int, batches: int, seconds: float) -> str:
    """Return the line after ``done`` batches and so many seconds."""
    left = f", ETA {duration(seconds / done * (batches - done))}" if done else ""
    return f"step {step} | evaluating: {done} of {batches} batches{left}"


def _print(line: str) -> None:
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()
