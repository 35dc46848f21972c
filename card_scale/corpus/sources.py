"""Which files are inputs, and how they divide into pieces of work.

What a file holds goes by its name, see :mod:`card_scale.corpus.formats.names`, and for JSON by its first bytes.
"""

import argparse
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from card_scale.corpus.arguments import DEFAULT_PATTERNS
from card_scale.corpus.document_parts import SMALLEST_PARTS, PartSizes
from card_scale.corpus.formats import arrow, json_text, parquet, table
from card_scale.corpus.formats.names import COMPRESSIONS, FileKind, kind_of
from card_scale.corpus.input_files import Selection, describe_passed_over, find_files
from card_scale.errors import DataError

# The fingerprints of the sources say which files these gave.
_SETTINGS_THAT_CHOOSE_FILES = ("patterns", "exclude", "hidden")


@dataclass(frozen=True)
class InputSettings:
    """Which texts are read.

    ``inputs`` are files, taken whatever their name, or directories, searched as ``patterns``, ``exclude`` and
    ``hidden`` say, see :class:`card_scale.corpus.input_files.Selection`. ``text_key`` is the JSON key or the column of
    a table. A null, and text that is not valid UTF-8, end the build, or with ``skip_invalid`` are left out and counted:
    that is the only choice, since replacing bytes would train on text that nobody wrote. Documents longer than
    ``split_documents`` bytes are split, see :class:`card_scale.corpus.document_parts.PartSizes`.
    """

    inputs: tuple[str, ...]
    patterns: tuple[str, ...] = DEFAULT_PATTERNS
    exclude: tuple[str, ...] = ()
    text_key: str = "text"
    skip_invalid: bool = False
    hidden: bool = False
    split_documents: int | None = None

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> "InputSettings":
        """From the arguments of :mod:`card_scale.corpus.arguments`."""
        return cls(
            tuple(arguments.inputs),
            tuple(arguments.glob or DEFAULT_PATTERNS),
            tuple(arguments.exclude),
            arguments.text_key,
            arguments.skip_invalid,
            arguments.hidden,
            arguments.split_documents,
        )

    @property
    def parts(self) -> PartSizes | None:
        """How documents are split, None where they are not."""
        return None if self.split_documents is None else PartSizes(self.split_documents)


class Piece(NamedTuple):
    """A part of one file that one process reads: all of it, or a range of its bytes, row groups or batches."""

    path: str
    name: str  # shown in messages and stored with each document: the input's own name and the path below it
    kind: str  # "text", "parts", "lines", "json", "table", "parquet", "arrow"
    begin: int  # parts, lines: first byte; parquet: first row group; arrow: first batch
    end: int  # one past the last
    bytes: int
    step: int = 0  # the piece may be divided where a multiple of it lies between begin and end; 0: nowhere


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
    passed_over: Mapping[str, int] = field(default_factory=dict)
    """How many of each kind of thing in the directories are not read, see ``describe_passed_over``."""

    def summaries(self) -> list[dict]:
        """The inputs as JSON values."""
        return [vars(summary) for summary in self.inputs]


def scan(settings: InputSettings) -> Scan:
    """Find the input files and the pieces that they are read in.

    The result depends on the inputs only, not on the order in which a file system lists them.

    Raises:
        DataError: an input that does not exist, is given twice, cannot be read, holds no matching file, or a file that
            shows already that it cannot be read as what its name says or lacks the text column; naming it.
    """
    if settings.split_documents is not None and settings.split_documents < SMALLEST_PARTS:
        raise DataError(f"--split-documents {settings.split_documents}: must be at least {SMALLEST_PARTS} bytes")
    summaries = []
    pieces: list[Piece] = []
    passed_over: Counter[str] = Counter()
    seen: dict[str, str] = {}
    for argument in settings.inputs:
        root = Path(argument)
        found = _files(root, settings, passed_over)
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
            if not status.st_size and kind_of(path.name).format != "text":  # an empty text file is an empty document
                passed_over["empty files"] += 1
            pieces += _pieces(path, name, status.st_size, settings)
        summaries.append(InputSummary(root.resolve().name, len(found), total, fingerprint.hexdigest()[:16]))
    return Scan(tuple(summaries), tuple(pieces), sum(summary.bytes for summary in summaries), +passed_over)


def split_piece(piece: Piece, size: int) -> Iterator[Piece]:
    """Divide a piece that can be into pieces of about ``size`` bytes; every other stays whole."""
    length = piece.end - piece.begin
    if not piece.step or piece.bytes <= size:
        yield piece
        return

    def bytes_until(place: int) -> int:
        return piece.bytes * (place - piece.begin) // length

    span = max(1, size * length // piece.bytes // piece.step) * piece.step
    for begin in range(piece.begin, piece.end, span):
        end = min(piece.end, begin + span)
        yield piece._replace(begin=begin, end=end, bytes=bytes_until(end) - bytes_until(begin))


def differences(existing: dict, wanted: dict) -> list[str]:
    """What differs between two JSON records of how something was made; keys only in ``existing`` are free."""
    phrases = []
    for key, value in wanted.items():
        if key in _SETTINGS_THAT_CHOOSE_FILES:
            continue
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


def _files(root: Path, settings: InputSettings, passed_over: Counter[str]) -> list[tuple[Path, str]]:
    """The files of one input, each with its name; what is not read is added to ``passed_over``."""
    if root.is_file():
        return [(root, root.name)]
    if not root.is_dir():
        kinds = "text, JSON, CSV, TSV, parquet or Arrow files"
        raise DataError(f"{root}: no such file or directory; give {kinds} or directories")
    found = find_files(root, Selection(settings.patterns, settings.exclude, settings.hidden))
    passed_over += found.passed_over
    if not found.files:
        rest = describe_passed_over(found.passed_over) or "it is empty"
        raise DataError(
            f"{root}: no file matches {' '.join(settings.patterns)} (exclude: {' '.join(settings.exclude)}); {rest}"
        )
    shown = root.resolve().name
    return [(path, f"{shown}/{relative}") for path, relative in found.files]


def _pieces(path: Path, name: str, size: int, settings: InputSettings) -> list[Piece]:
    kind = kind_of(path.name)
    if kind.compression and not size:
        raise DataError(
            f"{path}: 0 bytes, no {COMPRESSIONS[kind.compression]} file; restore it, or leave it out with --exclude"
        )
    try:
        return _pieces_of(kind, str(path), name, size, settings)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _pieces_of(kind: FileKind, path: str, name: str, size: int, settings: InputSettings) -> list[Piece]:
    if kind.format == "archive":
        raise DataError(f"{path}: an archive is not read; unpack it")
    if kind.format in ("parquet", "arrow"):
        if kind.compression:
            raise DataError(f"{path}: {kind.format} files are read uncompressed only; decompress it")
        if kind.format == "parquet":
            sizes = parquet.row_group_bytes(path, settings.text_key)
            return [Piece(path, name, "parquet", group, group + 1, held) for group, held in enumerate(sizes)]
        batches = arrow.batch_count(path, settings.text_key)
        return [Piece(path, name, "arrow", 0, batches, size, step=1)] if batches else []
    if kind.format == "table":
        table.check(path, settings.text_key)
        return [Piece(path, name, "table", 0, 1, size)]
    if kind.format == "json":
        if not kind.compression and json_text.is_lines(path):
            return [Piece(path, name, "lines", 0, size, size, step=1)]
        return [Piece(path, name, "json", 0, 1, size)]
    parts = settings.parts
    if parts and size > parts.longest and not kind.compression:
        return [Piece(path, name, "parts", 0, size, size, step=parts.stride)]
    return [Piece(path, name, "text", 0, 1, size)]
