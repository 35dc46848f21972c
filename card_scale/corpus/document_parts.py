"""Where a document that is longer than wanted is split: at the end of a paragraph, else of a line, else of a character.

Each cut is looked for near a multiple of half the wanted size and depends on the bytes just before it alone. So the
parts of a file can be found from any place in it, by any number of processes, and are always the same.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

SMALLEST_PARTS = 64
"""The least number of bytes that documents can be split to."""


class PartSizes(NamedTuple):
    """How documents are split; joined, the parts are the document."""

    longest: int
    """Bytes, ``SMALLEST_PARTS`` or more. A document of at most so many stays whole; a part of a longer one has at most
    so many, and at least a quarter of it."""

    @property
    def stride(self) -> int:
        """Bytes from one place where a cut is looked for to the next."""
        return self.longest // 2

    def spans(
        self, length: int, window: Callable[[int, int], bytes], begin: int, end: int
    ) -> Iterator[tuple[int, int, int]]:
        """Yield number, first byte and one past the last of the parts that belong to a range of a document's bytes.

        Args:
            length: bytes of the document, more than ``longest``.
            window: gives ``size`` bytes of the document from ``first`` on, called ``window(first, size)``.
            begin: first byte of the range, a multiple of ``stride``.
            end: one past the last: the ``begin`` of the next range, or ``length``.
        """
        number = begin // self.stride
        start = self._cut(number, length, window)
        while number * self.stride < end and start < length:
            stop = self._cut(number + 1, length, window)
            yield number, start, stop
            number, start = number + 1, stop

    def split(self, content: bytes) -> list[bytes]:
        """Return the parts of a document."""
        if len(content) <= self.longest:
            return [content]
        spans = self.spans(len(content), lambda first, size: content[first : first + size], 0, len(content))
        return [content[start:stop] for _, start, stop in spans]

    def _cut(self, number: int, length: int, window: Callable[[int, int], bytes]) -> int:
        """Where a part begins; the document's length for parts that it is too short for."""
        back = self.longest // 4
        nominal = number * self.stride
        if nominal == 0:
            return 0
        if nominal + back > length:  # the last part would be shorter than a quarter
            return length
        return nominal - back + _best_cut(window(nominal - back, back + 1))


def _best_cut(window: bytes) -> int:
    """Where to cut, at least 1 and at most ``len(window) - 1``; the last byte shows what a cut there would tear."""
    last = len(window) - 1
    for ends in ((b"\n\n", b"\n\r\n"), (b"\n",)):
        cuts = [place + len(end) for end in ends if (place := window.rfind(end, 0, last)) >= 0]
        if cuts:
            return max(cuts)
    for cut in range(last, last - 4, -1):
        continues = window[cut] & 0xC0 == 0x80
        if not continues and window[cut - 1 : cut + 1] != b"\r\n":
            return cut
    return last  # no UTF-8
