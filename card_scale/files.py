"""Writing and hashing files so that a kill at any moment leaves the old file or the new one, never half of one."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from io import RawIOBase
from pathlib import Path
from typing import Any

from card_scale.errors import DataError

PARTIAL = ".partial"  # ending of a file that is still being written; never read, removed by the next build


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """Return what a JSON file holds. Raises DataError, naming it, where that is no JSON."""
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error})") from None


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable: a rename is only safe from a power cut after this."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def removed_on_failure(directory: Path) -> Iterator[None]:
    """Remove a directory that cannot be finished, with all that is in it."""
    try:
        yield
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in an error of the operating system that does not: a full disk says no more than that."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def partial_path(path: Path) -> Path:
    """Where ``path`` is written until :func:`commit` gives it its name."""
    return path.with_name(path.name + PARTIAL)


def commit(path: Path) -> None:
    """Give a finished partial file, already synchronised to disk, its final name."""
    os.replace(partial_path(path), path)


def write_whole(file: RawIOBase, content: bytes | memoryview) -> None:
    """Write to a file that is not buffered, of which one call may write a part. An OSError leaves a part written."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) or 0 :]


@contextlib.contextmanager
def _partial_removed_on_failure(path: Path) -> Iterator[None]:
    """Leave no half of a small file where the disk is full."""
    try:
        yield
    except OSError:
        with contextlib.suppress(OSError):
            partial_path(path).unlink(missing_ok=True)
        raise


def replace(path: Path, content: bytes) -> None:
    """Write a small file so that readers see the old content or all of the new.

    After a power cut it may be missing or empty: for files that are checked when they are read and can be made again.
    """
    with naming(path), _partial_removed_on_failure(path):
        partial_path(path).write_bytes(content)
        commit(path)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a small file durably; readers see the old content or all of the new."""
    with naming(path), _partial_removed_on_failure(path):
        with partial_path(path).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        commit(path)
        sync_directory(path.parent)


def write_json(path: Path, content: Any) -> None:
    """Write JSON values as :func:`write_atomically` does. Raises ValueError for numbers that are not finite."""
    write_atomically(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
