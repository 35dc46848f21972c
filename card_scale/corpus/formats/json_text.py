"""JSON files: an object a line, one array of objects, or objects that take several lines, told by the first bytes.

Objects of an array or over several lines are found by their braces, byte by byte read once, and parsed one at a time:
time is linear in the file and memory in its longest object, also where all of it stands on one line.
"""

import codecs
import io
import json
import re
from collections.abc import Callable, Iterator
from typing import BinaryIO

from card_scale.corpus.formats.compression import BLOCK, open_decompressed
from card_scale.corpus.formats.record import Record
from card_scale.errors import DataError

_HEAD = 1 << 16
_SPACE = re.compile(rb"[ \t\r\n]*")
_MARK = re.compile(rb'["{}\[\]]')
# The rest of a string, up to its quote or a backslash whose character is still to come. Possessive, since a long
# string would otherwise be remembered escape by escape.
_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)


def is_lines(path: str) -> bool:
    """Whether a plain file holds an object a line, which may be read from any byte on."""
    with open(path, "rb") as file:
        return _is_lines(file.read(_HEAD))


def _is_lines(head: bytes) -> bool:
    first, line_break, _ = head.removeprefix(codecs.BOM_UTF8).lstrip().partition(b"\n")
    if first.startswith(b"["):
        return False
    # A broken line is a line: only one that ends where an object may go on is the start of a longer object.
    return not (line_break and first.startswith(b"{") and first.rstrip().endswith((b"{", b"[", b",", b":")))


def line_range(path: str, key: str, begin: int, end: int) -> Iterator[Record]:
    """Yield the lines of a plain file that *start* in a range of its bytes, by byte offset; the last may end beyond.

    Raises DataError for a line that is no JSON object with the key, and for a file that became shorter.
    """
    with open(path, "rb") as file:
        position = begin
        if position:
            file.seek(position - 1)
            position = _next_line(file, position - 1, end)
        while position < end:
            line = file.readline()
            if not line:
                raise DataError(f"{path}: ends at byte {position}, expected {end}; it changed while being read")
            start, position = position, position + len(line)
            content = line if start else line.removeprefix(codecs.BOM_UTF8)
            if content.strip():
                yield _record(path, content, key, start, min(position, end) - begin, _line_counter(path, start))


def _next_line(file: BinaryIO, position: int, end: int) -> int:
    """Read from ``position`` to the next line, and return where it starts; ``end`` where none does before.

    Not beyond, where the rest of a line that spans many ranges would be read for each of them.
    """
    while position < end and (part := file.readline(min(BLOCK, end - position))):
        position += len(part)
        if part.endswith(b"\n"):
            break
    return position


def _line_counter(path: str, offset: int) -> Callable[[int], str]:
    """Count the lines before a byte offset when asked, since only an error needs them."""

    def where(_byte: int) -> str:
        with open(path, "rb") as file:
            remaining, lines = offset, 1
            while remaining and (block := file.read(min(BLOCK, remaining))):
                remaining -= len(block)
                lines += block.count(b"\n")
        return f"line {lines}"

    return where


def whole(path: str, key: str) -> Iterator[Record]:
    """Yield the objects of a file, compressed or not: by line, from 1, or by element of an array, from 0.

    Raises DataError for what is no JSON object with the key, and for a file that is damaged or cut short.
    """
    with open_decompressed(path) as (file, position):
        head = file.peek(_HEAD)
        if head.startswith(codecs.BOM_UTF8):
            file.read(len(codecs.BOM_UTF8))
        if _is_lines(head):
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _record(path, line, key, number, position(), _place("line", number))
        else:
            for number, element in enumerate(_objects(file, path)):
                yield _record(path, element, key, number, position(), _place("element", number))


def _place(unit: str, number: int) -> Callable[[int], str]:
    return lambda _byte: f"{unit} {number}"


def _record(path: str, content: bytes, key: str, number: int, position: int, where: Callable[[int], str]) -> Record:
    try:
        value = json.loads(content.decode())
        text = value[key] if isinstance(value, dict) else None
    except UnicodeDecodeError as error:
        byte = content[error.start]
        return Record(number, None, position, where, f"not valid UTF-8 (byte 0x{byte:02x} at {error.start})")
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: {where(0)}: not valid JSON ({error})") from error
    except KeyError as error:
        raise DataError(
            f"{path}: {where(0)}: no key {key!r}, the object has {', '.join(map(repr, value)) or 'none'}; name the key "
            "with --text-key, or leave the file out with --exclude"
        ) from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: {where(0)}: no JSON object, expected one with a string {key!r}")
    if text is None:
        return Record(number, None, position, where)
    if not isinstance(text, str):
        raise DataError(f"{path}: {where(0)}: {key!r} is {type(text).__name__}, expected a string")
    try:
        return Record(number, text.encode(), position, where)
    except UnicodeEncodeError as error:  # an escaped half of a surrogate pair
        return Record(number, None, position, where, f"a lone surrogate is not valid Unicode ({error.reason})")


def _objects(file: io.BufferedReader, path: str) -> Iterator[bytes]:
    """Yield the objects of an array, or those that follow each other without one."""
    window = _Window(file, path)
    if window.next_byte() != b"[":
        while window.next_byte():
            yield window.take_object()
        return
    window.drop()
    separator = b"," if window.next_byte() != b"]" else b""
    while separator == b",":
        yield window.take_object()
        separator = window.next_byte()
        if separator == b",":
            window.drop()
    if window.next_byte() != b"]":
        raise window.error("expected ',' or ']' after an element")
    window.drop()
    if window.next_byte():
        raise window.error("more stands after the array")


class _Window:
    """The part of a stream that is being looked at: it begins with the object that is being read."""

    def __init__(self, file: io.BufferedReader, path: str):
        self._file, self._path = file, path
        self._data = bytearray()
        self._place = 0
        self._elements = 0

    def error(self, message: str) -> DataError:
        """An error at the element that comes next."""
        return DataError(f"{self._path}: element {self._elements}: not valid JSON ({message})")

    def next_byte(self) -> bytes:
        """The next byte that is no white space, which stays; empty at the end."""
        while True:
            self._place = _SPACE.match(self._data, self._place).end()  # type: ignore[union-attr]
            if self._place < len(self._data):
                return bytes(self._data[self._place : self._place + 1])
            if not self._refill():
                return b""

    def drop(self) -> None:
        """Go past the byte that ``next_byte`` gave."""
        self._place += 1

    def take_object(self) -> bytes:
        """The object that comes next, from brace to brace, whatever is inside.

        Raises DataError where something else comes, or the stream ends inside.
        """
        found = self.next_byte()
        if not found:
            raise self.error("the file ends inside an array")
        if found != b"{":
            raise DataError(f"{self._path}: element {self._elements}: no JSON object, expected one with the text key")
        seen, depth, in_string = 0, 0, False
        while True:
            end = self._string_end(seen) if in_string else self._next_mark(seen)
            if end == len(self._data) or self._data[end] == ord("\\"):  # of an escape that is cut in two
                seen = end - self._place
                if not self._refill():
                    raise self.error("the file ends inside an object")
                continue
            mark, seen = self._data[end], end + 1 - self._place
            if mark == ord('"'):
                in_string = not in_string
            else:
                depth += 1 if mark in b"{[" else -1
            if depth == 0:
                return self._take(seen)

    def _refill(self) -> bool:
        """Let go of what has been taken and add a block. False at the end of the stream."""
        del self._data[: self._place]
        self._place = 0
        block = self._file.read(BLOCK)
        self._data += block
        return bool(block)

    def _string_end(self, seen: int) -> int:
        return _STRING.match(self._data, self._place + seen).end()  # type: ignore[union-attr]

    def _next_mark(self, seen: int) -> int:
        found = _MARK.search(self._data, self._place + seen)
        return found.start() if found else len(self._data)

    def _take(self, size: int) -> bytes:
        content = bytes(self._data[self._place : self._place + size])
        self._place += size
        self._elements += 1
        return content
