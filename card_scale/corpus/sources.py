"""Reading text: which files are inputs, how they divide into pieces of work, and the documents of one piece.

Formats go by name: ``.jsonl``, ``.jsonl.gz`` and ``.jsonl.zst`` hold one JSON object a line, ``.parquet`` one document
a row, anything else is a text file that is one document.
"""

import argparse
import fnmatch
import gzip
import hashlib
import importlib
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from card_scale.corpus.arguments import DEFAULT_PATTERNS
from card_scale.errors import DataError

_READ = 1 << 20


@dataclass(frozen=True)
class InputSettings:
    """Which texts are read.

    ``inputs`` are files, taken whatever their name, or directories, searched for names that match one of
    ``patterns``; ``exclude`` patterns are matched with the path below the directory. ``text_key`` is the JSON key or
    parquet column. Text that is not valid UTF-8 ends the build, or with ``skip_invalid`` the document is left out and
    counted: that is the only choice, since replacing bytes would train on text that nobody wrote.
    """

    inputs: tuple[str, ...]
    patterns: tuple[str, ...] = DEFAULT_PATTERNS
    exclude: tuple[str, ...] = ()
    text_key: str = "text"
    skip_invalid: bool = False

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> "InputSettings":
        """From the arguments of :mod:`card_scale.corpus.arguments`."""
        return cls(
            tuple(arguments.inputs),
            tuple(arguments.glob or DEFAULT_PATTERNS),
            tuple(arguments.exclude),
            arguments.text_key,
            arguments.skip_invalid,
        )


class Piece(NamedTuple):
    """A part of one file that one process reads: all of it, or bytes of a jsonl, or row groups of a parquet file."""

    path: str
    name: str  # shown in messages and stored with each document: the input's own name and the path below it
    kind: str  # "text", "jsonl", "compressed", "parquet"
    begin: int  # jsonl: first byte; parquet: first row group
    end: int  # one past the last
    bytes: int


class Document(NamedTuple):
    """One document; not ``valid``, and without text, where it was not UTF-8 and such documents are left out."""

    source: str
    record: int  # jsonl: byte offset of the line; compressed: line, from 1; parquet: row, from 0; text: 0
    text: bytes  # UTF-8
    valid: bool = True


@dataclass(frozen=True)
class InputSummary:
    """One input as it was found; ``fingerprint`` changes when a file is added, removed, resized or touched."""

    name: str
    files: int
    bytes: int
    fingerprint: str


@dataclass(frozen=True)
class Scan:
    """All inputs, in a fixed order."""

    inputs: tuple[InputSummary, ...]
    pieces: tuple[Piece, ...]
    bytes: int

    def summaries(self) -> list[dict]:
        """The inputs as JSON values."""
        return [vars(summary) for summary in self.inputs]


def scan(settings: InputSettings) -> Scan:
    """Find the input files: a piece each, but for parquet files a piece a row group.

    The result depends on the inputs only, not on the order in which a file system lists them.

    Raises:
        DataError: an input that does not exist, is given twice, cannot be read, holds no matching file, or a parquet
            file without the text column; naming it.
    """
    summaries = []
    pieces: list[Piece] = []
    seen: dict[str, str] = {}
    for argument in settings.inputs:
        root = Path(argument)
        found = _files(root, settings)
        fingerprint = hashlib.sha256()
        total = 0
        for path, name in found:
            try:
                status = path.stat()
            except OSError as error:  # a dangling link, most often
                raise DataError(f"{path}: cannot be read ({error.strerror})") from error
            identity = os.path.realpath(path)
            if identity in seen:
                raise DataError(f"{path}: this file is an input twice (the first time as {seen[identity]})")
            seen[identity] = str(path)
            fingerprint.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
            total += status.st_size
            pieces += _pieces(path, name, status.st_size, settings)
        summaries.append(InputSummary(root.resolve().name, len(found), total, fingerprint.hexdigest()[:16]))
    return Scan(tuple(summaries), tuple(pieces), sum(summary.bytes for summary in summaries))


def split_piece(piece: Piece, size: int) -> Iterator[Piece]:
    """Divide a jsonl piece into byte ranges of at most ``size``; every other piece stays whole."""
    if piece.kind != "jsonl" or piece.bytes <= size:
        yield piece
        return
    for begin in range(piece.begin, piece.end, size):
        end = min(piece.end, begin + size)
        yield piece._replace(begin=begin, end=end, bytes=end - begin)


def differences(existing: dict, wanted: dict) -> list[str]:
    """What differs between two JSON records of how something was made; keys only in ``existing`` are free."""
    phrases = []
    for key, value in wanted.items():
        other = existing.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            phrases += [f"{key}.{phrase}" for phrase in differences(other, value)]
        elif key == "sources" and isinstance(other, list) and len(other) == len(value):
            phrases += [
                f"input {new['name']} has {new['files']} files, {new['bytes']} bytes, fingerprint {new['fingerprint']} "
                f"(then {old['files']} files, {old['bytes']} bytes, {old['fingerprint']})"
                for old, new in zip(other, value, strict=True)
                if old != new
            ]
        elif other != value:
            phrases.append(f"{key} is {value!r} (then {other!r})")
    return phrases


def _files(root: Path, settings: InputSettings) -> list[tuple[Path, str]]:
    if root.is_file():
        return [(root, root.name)]
    if not root.is_dir():
        raise DataError(
            f"{root}: no such file or directory; give text, jsonl(.gz, .zst) or parquet files or directories"
        )
    found = []
    shown = root.resolve().name
    for directory, subdirectories, names in os.walk(root, onerror=_unreadable):
        below = "" if directory == str(root) else os.path.relpath(directory, root) + "/"
        subdirectories[:] = [name for name in subdirectories if not _excluded_directory(below + name + "/", settings)]
        for name in names:
            matches = any(fnmatch.fnmatchcase(name, pattern) for pattern in settings.patterns)
            if matches and not _excluded(below + name, settings):
                found.append((Path(directory, name), f"{shown}/{below}{name}"))
    if not found:
        raise DataError(
            f"{root}: no file matches {' '.join(settings.patterns)} (exclude: {' '.join(settings.exclude)})"
        )
    return sorted(found, key=lambda item: item[1])


def _excluded(relative: str, settings: InputSettings) -> bool:
    return any(fnmatch.fnmatchcase(relative, pattern) for pattern in settings.exclude)


def _excluded_directory(relative: str, settings: InputSettings) -> bool:
    """Whether everything below a directory, given with its final slash, is excluded and need not be looked at."""
    return any(pattern.endswith("*") and fnmatch.fnmatchcase(relative, pattern) for pattern in settings.exclude)


def _unreadable(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot list the directory ({error.strerror})") from error


def _pieces(path: Path, name: str, size: int, settings: InputSettings) -> list[Piece]:
    if name.endswith(".jsonl"):
        return [Piece(str(path), name, "jsonl", 0, size, size)]
    if name.endswith((".jsonl.gz", ".jsonl.zst")):
        return [Piece(str(path), name, "compressed", 0, 1, size)]
    if name.endswith(".parquet"):
        return _parquet_pieces(path, name, settings)
    if name.endswith((".gz", ".zst", ".bz2", ".xz", ".zip", ".tar")):
        raise DataError(f"{path}: a compressed file is read as .jsonl.gz or .jsonl.zst only")
    return [Piece(str(path), name, "text", 0, 1, size)]


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
    zstandard = _library("zstandard", path)
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


def _library(name: str, path: str) -> Any:
    """A library that only some formats need, imported where such a file is met."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise DataError(f"{path}: reading it needs {package}; install it with: pip install {package}") from error


def _parquet_file(path: str) -> Any:
    pyarrow = _library("pyarrow", path)
    try:
        return _library("pyarrow.parquet", path).ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:  # a footer that is none comes as OSError
        raise DataError(f"{path}: damaged or no parquet file ({error})") from error


def _parquet_pieces(path: Path, name: str, settings: InputSettings) -> list[Piece]:
    pyarrow = _library("pyarrow", str(path))
    with _parquet_file(str(path)) as file:
        schema = file.schema_arrow
        if settings.text_key not in schema.names:
            raise DataError(
                f"{path}: no column {settings.text_key!r}, the file has {', '.join(map(repr, schema.names))}; "
                "name the column with --text-key"
            )
        column = schema.field(settings.text_key).type
        value_type = column.value_type if pyarrow.types.is_dictionary(column) else column
        if not (pyarrow.types.is_string(value_type) or pyarrow.types.is_large_string(value_type)):
            raise DataError(f"{path}: column {settings.text_key!r} holds {column}, expected strings")
        groups = [file.metadata.row_group(group) for group in range(file.metadata.num_row_groups)]
    return [
        Piece(str(path), name, "parquet", number, number + 1, group.total_byte_size)
        for number, group in enumerate(groups)
    ]


def _parquet(piece: Piece, settings: InputSettings) -> Iterator[Document]:
    pyarrow = _library("pyarrow", piece.path)
    with _parquet_file(piece.path) as file:
        row = sum(file.metadata.row_group(group).num_rows for group in range(piece.begin))
        try:
            batches = file.iter_batches(row_groups=range(piece.begin, piece.end), columns=[settings.text_key])
            for batch in batches:
                # as bytes, so that a value that is not UTF-8 is met here, by row, and not inside the library
                for value in batch.column(0).cast(pyarrow.large_string()).cast(pyarrow.large_binary()).to_pylist():
                    yield _row(value, piece, row, settings)
                    row += 1
        except pyarrow.ArrowException as error:
            raise DataError(f"{piece.path}: row group {piece.begin}: damaged parquet file ({error})") from error


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
