"""Which files are inputs, and how they divide into pieces of work.

Formats go by name: ``.jsonl``, ``.jsonl.gz`` and ``.jsonl.zst`` hold one JSON object a line, ``.parquet`` one document
a row, anything else is a text file that is one document.
"""

import argparse
import fnmatch
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from card_scale.corpus.arguments import DEFAULT_PATTERNS
from card_scale.corpus.parquet import row_group_bytes
from card_scale.errors import DataError


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
        sizes = row_group_bytes(str(path), settings.text_key)
        return [Piece(str(path), name, "parquet", group, group + 1, held) for group, held in enumerate(sizes)]
    if name.endswith((".gz", ".zst", ".bz2", ".xz", ".zip", ".tar")):
        raise DataError(f"{path}: a compressed file is read as .jsonl.gz or .jsonl.zst only")
    return [Piece(str(path), name, "text", 0, 1, size)]
