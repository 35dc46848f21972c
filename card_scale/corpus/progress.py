"""Showing how far a long piece of work is: a bar on a terminal, elsewhere a line now and then."""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

FIRST_LINE, NEXT_LINES = 5.0, 30.0
"""Seconds until the first line, and between the others: a log stays short, and its reader knows soon."""


class Progress:
    """How many of the bytes have been done, on stderr; used as a context."""

    def __init__(
        self,
        label: str,
        total: int,
        shown: bool,
        initial: int = 0,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._label, self._total, self._done = label, total, initial
        self._stream = sys.stderr if stream is None else stream
        self._clock, self._begin = clock, clock()
        self._next_line = FIRST_LINE
        on_terminal = shown and self._stream.isatty()
        self._lines = shown and not on_terminal
        self._bar = tqdm(
            total=total,
            initial=initial,
            unit="B",
            unit_scale=True,
            desc=label,
            disable=not on_terminal,
            file=self._stream,
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    def update(self, size: int) -> None:
        """Add so many bytes, 0 to say only that the work goes on."""
        self._done += size
        self._bar.update(size)
        seconds = self._clock() - self._begin
        if self._lines and seconds >= self._next_line:
            share = self._done / max(1, self._total)
            print(
                f"{self._label}: {self._done / 1e6:.1f} of {self._total / 1e6:.1f} MB ({share:.0%}), {seconds:.0f} s",
                file=self._stream,
                flush=True,
            )
            self._next_line = seconds + NEXT_LINES
