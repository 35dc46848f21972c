"""The documents of one piece of an input, whatever its format."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from card_scale.corpus.optional_library import optional_library
from card_scale.corpus.parquet import column_values
from card_scale.corpus.sources import InputSettings, Piece
from card_scale.errors import DataError

_READ = 1 << 20


class Document(NamedTuple):
    """One document; not ``valid``, and without text, where it was not UTF-8 and such documents are left out."""

    source: str
    record: int  # jsonl: byte offset of the line; compressed: line, from 1; parquet: row, from 0; text: 0
    text: bytes  # UTF-8
    valid: bool = True


def documents(piece: Piece, settings: InputSettings) -> Iterator[Document]:
    """The documents of a piece in file order, empty ones included.

    Raises:
        DataError: a file that cannot be read or is damaged, a line that is no JSON object with the text key, or text
            that is not UTF-8 (unless ``skip_invalid``); naming file and line.
    """
    read = {"text": _text_file, "jsonl": _jsonl, "compressed": _compressed, "parquet": _parquet}[piece.kind]
    try:
        yield from read(piece, settings)
    except OSError as error:
        raise DataError(f"{piece.path}: cannot be read ({error.strerror or error})") from error


def _text_file(piece: Piece, settings: InputSettings) -> Iterator[Document]:
    content = Path(piece.path).read_bytes()
    try:
        content.decode()
    except UnicodeDecodeError as error:
        if not settings.skip_invalid:
            line = content.count(b"\n", 0, error.start) + 1
            raise _not_utf8(piece.path, f"line {line}", error.start, content[error.start]) from error
        yield Document(piece.name, 0, b"", valid=False)
    else:
        yield Document(piece.name, 0, content)


def _not_utf8(path: str, where: str, offset: int, value: int) -> DataError:
    return DataError(
        f"{path}: {where}: not valid UTF-8 (byte 0x{value:02x} at {offset}); convert it, or leave such documents out "
        "with --skip-invalid"
    )


def _jsonl(piece: Piece, settings: InputSettings) -> Iterator[Document]:
    """The lines that *start* in the piece's bytes; the last of them may end beyond."""
    with open(piece.path, "rb") as file:
        position = piece.begin
        if position:
            file.seek(position - 1)
            position += len(file.readline()) - 1  # the rest of a line that starts before, or just its line break
        while position < piece.end:
            line = file.readline()
            if not line:
                raise DataError(
                    f"{piece.path}: ends at byte {position}, expected {piece.end}; it changed while being read"
                )
            yield from _record(line, piece, position, settings)
            position += len(line)


def _compressed(piece: Piece, settings: InputSettings) -> Iterator[Document]:
    blocks = _gzip_blocks if piece.name.endswith(".gz") else _zstandard_blocks
    rest = b""
    number = 0
    for block in blocks(piece.path):
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            number += 1
            yield from _record(line, piece, number, settings)
    yield from _record(rest, piece, number + 1, settings)


def _gzip_blocks(path: str) -> Iterator[bytes]:
    try:
        with gzip.open(path, "rb") as file:
            while block := file.read(_READ):
                yield block
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged or truncated gzip file ({error})") from error


def _zstandard_blocks(path: str) -> Iterator[bytes]:
    zstandard = optional_library("zstandard", path)
    # Decompressed frame by frame: the library's stream reader takes a truncated frame for the end of the file.
    decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)  # as written by zstd --long=31
    frame = decompressor.decompressobj()
    inside = False
    with open(path, "rb") as file:
        while block := file.read(_READ):
            while block:
                try:
                    yield frame.decompress(block)
                except zstandard.ZstdError as error:
                    raise DataError(f"{path}: damaged zstd file ({error})") from error
                inside = not frame.eof
                block = frame.unused_data
                if frame.eof:
                    frame = decompressor.decompressobj()
    if inside:
        raise DataError(f"{path}: truncated zstd file")


def _record(line: bytes, piece: Piece, record: int, settings: InputSettings) -> Iterator[Document]:
    if not line.strip():
        return
    try:
        value = json.loads(line.decode())
        text = value[settings.text_key] if isinstance(value, dict) else None
    except UnicodeDecodeError as error:
        if not settings.skip_invalid:
            raise _not_utf8(piece.path, _where(piece, record), error.start, line[error.start]) from error
        yield Document(piece.name, record, b"", valid=False)
        return
    except (ValueError, RecursionError) as error:
        raise DataError(f"{piece.path}: {_where(piece, record)}: not valid JSON ({error})") from error
    except KeyError as error:
        raise DataError(
            f"{piece.path}: {_where(piece, record)}: no key {settings.text_key!r}, the line has "
            f"{', '.join(map(repr, value)) or 'none'}; name the key with --text-key"
        ) from error
    if not isinstance(text, str):
        found = "no JSON object" if not isinstance(value, dict) else f"{settings.text_key!r} is {type(text).__name__}"
        raise DataError(f"{piece.path}: {_where(piece, record)}: {found}, expected an object with a string")
    try:
        yield Document(piece.name, record, text.encode())
    except UnicodeEncodeError as error:  # an escaped half of a surrogate pair
        if not settings.skip_invalid:
            raise DataError(
                f"{piece.path}: {_where(piece, record)}: a lone surrogate is not valid Unicode ({error.reason}); "
                "repair it, or leave such documents out with --skip-invalid"
            ) from error
        yield Document(piece.name, record, b"", valid=False)


def _where(piece: Piece, record: int) -> str:
    """``line N``; for a byte offset the lines before it are counted now, since only an error needs them."""
    if piece.kind == "jsonl":
        with open(piece.path, "rb") as file:
            remaining, lines = record, 1
            while remaining and (block := file.read(min(_READ, remaining))):
                remaining -= len(block)
                lines += block.count(b"\n")
        return f"line {lines}"
    return f"line {record}"


def _parquet(piece: Piece, settings: InputSettings) -> Iterator[Document]:
    for row, value in column_values(piece.path, settings.text_key, piece.begin, piece.end):
        yield _row(value, piece, row, settings)


def _row(value: bytes | None, piece: Piece, row: int, settings: InputSettings) -> Document:
    if value is None:
        raise DataError(f"{piece.path}: row {row}: {settings.text_key!r} is null, expected a string")
    try:
        value.decode()
    except UnicodeDecodeError as error:
        if not settings.skip_invalid:
            raise _not_utf8(piece.path, f"row {row}", error.start, value[error.start]) from error
        return Document(piece.name, row, b"", valid=False)
    return Document(piece.name, row, value)
