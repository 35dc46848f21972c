"""Text files: one document each, or the parts of one where documents are to be split."""

import os
from collections.abc import Iterator
from pathlib import Path

from card_scale.corpus.document_parts import PartSizes
from card_scale.corpus.formats.compression import open_decompressed
from card_scale.corpus.formats.record import Record
from card_scale.errors import DataError


def whole(path: str) -> Iterator[Record]:
    """Yield the content of a file, decompressed if its name says so, as record 0."""
    with open_decompressed(path) as (file, position):
        content = file.read()
        yield Record(0, content, position(), lambda byte: _line(content, byte))


def parts(path: str, sizes: PartSizes, begin: int, end: int) -> Iterator[Record]:
    """Yield the parts of a plain file whose nominal starts lie in a range of its bytes, as parts of record 0.

    Raises DataError for a file that became shorter.
    """
    with Path(path).open("rb") as file:
        length = os.fstat(file.fileno()).st_size
        if length < end:
            raise DataError(f"{path}: {length} bytes, expected {end}; it changed while being read")

        def window(first: int, size: int) -> bytes:
            file.seek(first)
            return file.read(size)

        for number, start, stop in sizes.spans(length, window, begin, end):
            content = window(start, stop - start)

            def where(byte: int, number: int = number, content: bytes = content) -> str:
                return f"part {number}, {_line(content, byte)} of it"

            yield Record(0, content, min(stop, end) - begin, where, part=number)


def _line(content: bytes, byte: int) -> str:
    lines_before = content.count(b"\n", 0, byte)
    return f"line {lines_before + 1}"
