"""The documents of one piece of an input, whatever its format."""

from collections.abc import Iterator
from typing import NamedTuple

from card_scale.corpus.formats import arrow, json_text, parquet, table, text
from card_scale.corpus.formats.record import Record
from card_scale.corpus.sources import InputSettings, Piece
from card_scale.errors import DataError

INVALID, NULL = "invalid_skipped", "null_skipped"
"""Why a document has no text, as the counts of a manifest name it."""


class Document(NamedTuple):
    """One document, or a part of one where they are split."""

    source: str
    record: int
    """lines: byte offset; lines of a compressed file: line, from 1; rows and elements: from 0; text: 0."""
    text: bytes
    """UTF-8; empty where it is ``left_out``."""
    part: int | None = None
    """From 0, where the document was split."""
    left_out: str | None = None
    """``INVALID`` or ``NULL``, where such documents are left out."""
    position: int = 0
    """Bytes of the piece that have been read."""


def documents(piece: Piece, settings: InputSettings) -> Iterator[Document]:
    """The documents of a piece in file order, empty ones included, the long ones in parts where that is wanted.

    Raises:
        DataError: a file that cannot be read or is damaged, a line that is no JSON object with the text key, a null, or
            text that is not UTF-8 (these two unless ``skip_invalid``); naming file and line.
    """
    try:
        for record in _records(piece, settings):
            yield from _documents(record, piece, settings)
    except OSError as error:
        raise DataError(f"{piece.path}: cannot be read ({error.strerror or error})") from error


def _records(piece: Piece, settings: InputSettings) -> Iterator[Record]:
    path, key, begin, end = piece.path, settings.text_key, piece.begin, piece.end
    if piece.kind == "text":
        return text.whole(path)
    if piece.kind == "parts":
        assert settings.parts is not None, "only where documents are split are there parts"
        return text.parts(path, settings.parts, begin, end)
    if piece.kind == "lines":
        return json_text.line_range(path, key, begin, end)
    if piece.kind == "json":
        return json_text.whole(path, key)
    if piece.kind == "table":
        return table.records(path, key)
    reader = {"parquet": parquet, "arrow": arrow}[piece.kind]
    return reader.records(path, key, begin, end, piece.bytes)


def _documents(record: Record, piece: Piece, settings: InputSettings) -> Iterator[Document]:
    content, parts = record.text, settings.parts
    if content is None:
        yield _left_out(record, piece, settings, record.problem)
    elif parts is None or record.part is not None or len(content) <= parts.longest:
        yield _document(record, record.part, content, piece, settings)
    else:
        for number, part in enumerate(parts.split(content)):
            yield _document(record, number, part, piece, settings)


def _document(record: Record, part: int | None, content: bytes, piece: Piece, settings: InputSettings) -> Document:
    try:
        content.decode()
    except UnicodeDecodeError as error:
        problem = f"not valid UTF-8 (byte 0x{content[error.start]:02x} at {error.start})"
        return _left_out(record._replace(part=part), piece, settings, problem, error.start)
    return Document(piece.name, record.number, content, part, None, record.position)


def _left_out(record: Record, piece: Piece, settings: InputSettings, problem: str | None, byte: int = 0) -> Document:
    """A document without text: a null where nothing is said to be wrong."""
    if not settings.skip_invalid:
        found = f"{problem}; convert it" if problem else f"{settings.text_key!r} is null; give it a text"
        raise DataError(f"{piece.path}: {record.where(byte)}: {found}, or leave such documents out with --skip-invalid")
    return Document(piece.name, record.number, b"", record.part, INVALID if problem else NULL, record.position)
