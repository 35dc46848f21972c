"""The format and compression that a file's name stands for, in any case."""

from typing import NamedTuple

COMPRESSIONS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
"""Endings of compressed files, each with the name of its compression."""

FORMATS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "table",
    ".tsv": "table",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
"""Endings that stand for a format; every other name is a text file."""

ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar", ".lz4", ".lzma", ".br")
"""Endings of files that would be read as text although they are none."""


class FileKind(NamedTuple):
    """What a name stands for."""

    format: str
    compression: str
    """Its ending, or empty."""


def without_compression(name: str) -> str:
    """Return a name without the ending of a compression."""
    stem, dot, ending = name.rpartition(".")
    return stem if stem and dot + ending.lower() in COMPRESSIONS else name


def kind_of(name: str) -> FileKind:
    """Return format (``text``, ``archive`` or a value of ``FORMATS``) and compression of a name."""
    inner = without_compression(name)
    stem, dot, last = inner.rpartition(".")
    ending = dot + last.lower() if stem else ""
    held = "archive" if ending in ARCHIVES else FORMATS.get(ending, "text")
    return FileKind(held, name[len(inner) :].lower())
