"""A sign of life of what a tool's user waits for."""

import sys
import time
from collections.abc import Callable

SECONDS = 2.0
"""Wait before the first line, and between lines."""

Say = Callable[[str], None]
"""Takes what is being done now, as often as there is something new to say."""


def silent(text: str) -> None:
    """Say nothing."""


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
