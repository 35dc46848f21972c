"""One column of text in a CSV or TSV file whose first row names the columns, compressed or not."""

import csv
import io
import sys
from collections.abc import Iterator

from card_scale.corpus.formats.columns import check_column
from card_scale.corpus.formats.compression import open_decompressed
from card_scale.corpus.formats.names import without_compression
from card_scale.corpus.formats.record import Record
from card_scale.errors import DataError


def check(path: str, column: str) -> None:
    """Raise DataError for a file without the column or with two of it, or whose first row cannot be read."""
    with open_decompressed(path) as (file, _):
        _header(_reader(file, path), path, column)


def records(path: str, column: str) -> Iterator[Record]:
    """Yield the rows below the header, numbered from 0.

    A field may be quoted and then hold separators, line breaks and doubled quotes; its bytes are kept as they are.
    Raises DataError for a row that is not as long as the header or wrongly quoted, and for a damaged file.
    """
    with open_decompressed(path) as (file, position):
        reader = _reader(file, path)
        header = _header(reader, path, column)
        if not header:
            return
        place, number = header.index(column), -1
        try:
            for number, row in enumerate(filter(None, reader)):
                if len(row) != len(header):
                    raise DataError(
                        f"{path}: row {number}: {len(row)} fields, the header has {len(header)}; quote fields that "
                        "hold a separator or a line break"
                    )
                text = row[place].encode(errors="surrogateescape")
                yield Record(number, text, position(), lambda _byte, number=number: f"row {number}")  # type: ignore[misc]
        except csv.Error as error:
            raise DataError(f"{path}: row {number + 1}: not valid CSV ({error})") from error


def _reader(file: io.BufferedReader, path: str) -> "Iterator[list[str]]":
    csv.field_size_limit(sys.maxsize)  # the library's own limit of 128 KiB is shorter than many documents
    # Escaped, so that what is no UTF-8 comes back as the bytes that it was.
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    delimiter = "\t" if without_compression(path).lower().endswith(".tsv") else ","
    return csv.reader(text, delimiter=delimiter, strict=True)


def _header(reader: "Iterator[list[str]]", path: str, column: str) -> list[str]:
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise DataError(f"{path}: the header is not valid CSV ({error})") from error
    if header:
        check_column(path, header, column)
    return header
