"""What every format's reader yields."""

from collections.abc import Callable
from typing import NamedTuple


class Record(NamedTuple):
    """One text of a file as it was found: not checked to be UTF-8, and possibly empty or missing."""

    number: int
    """Its place in the file, counted as the format does: a byte offset, a line from 1, or a row or element from 0."""
    text: bytes | None
    """None where the file says null, or where there is a ``problem``."""
    position: int
    """Bytes of the piece that have been read so far, to show progress."""
    where: Callable[[int], str]
    """The place in words, given the byte of the text that is at fault; asked for an error only."""
    problem: str | None = None
    """Why it is no Unicode text, where the reader had to find out."""
    part: int | None = None
    """Which part of the text this is, from 0, where the reader itself has split it."""
