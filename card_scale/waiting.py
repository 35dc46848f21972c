"""A sign of life of what a user waits for."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

SECONDS = 2.0
"""Wait before the first line, and between lines."""
LONGEST_SECONDS = 60.0
"""Between two lines of :func:`told` at most."""

Say = Callable[[str], None]
"""Takes what is being done now, as often as there is something new to say."""


def silent(text: str) -> None:
    """Say nothing."""


def to_stderr(text: str) -> None:
    """Say it there at once."""
    print(text, file=sys.stderr, flush=True)


def every_two_seconds() -> Say:
    """Return a function that writes what is being done to stderr, from now on no more often than every two seconds."""
    began = last = time.monotonic()

    def say(text: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= SECONDS:
            last = now
            print(f"{now - began:.0f} s: {text}", file=sys.stderr, flush=True)

    return say


@contextlib.contextmanager
def told(line: Callable[[], str], say: Say, first_seconds: float = SECONDS) -> Iterator[None]:
    """Say how far something is while the context lasts: ``line()`` after ``first_seconds``, then at pauses that double.

    A thread says it, since whoever works may be silent for long inside a library.
    """
    ended = threading.Event()

    def watch() -> None:
        pause = first_seconds
        while not ended.wait(pause):
            say(line())
            pause = min(2 * pause, LONGEST_SECONDS)

    thread = threading.Thread(target=watch, name="how far it is", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
