"""Sources of public Python packages: wheels that a list pins by their hashes, read as zip files and never installed."""

import os
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from card_scale.errors import DataError
from card_scale.files import sha256_file

_PINNED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.+!_-]+) +--hash=sha256:([0-9a-f]{64})")
_SHOWN_LINES = 5  # of what pip says at its end


class PinnedWheel(NamedTuple):
    """One line of a list."""

    package: str
    """``NAME==VERSION``."""
    sha256: str
    """Of the wheel's bytes, hexadecimal."""


class SourceFile(NamedTuple):
    """One document, with the keys that it has in JSON Lines."""

    text: str
    path: str
    """Inside the wheel."""
    package: str
    """``NAME==VERSION``."""


class Sources(NamedTuple):
    """What a list's wheels hold."""

    files: list[SourceFile]
    left_out: Counter[str]
    """How many files of each kind are not among them."""


def read_list(path: Path) -> list[PinnedWheel]:
    """Read a list of packages: lines of a pip requirements file, each with an exact version and one hash.

    Raises:
        DataError: a line of another form, or no line at all.
        OSError: a file that cannot be read.
    """
    wheels = []
    # What is not UTF-8 is no part of a package's name, and is refused with its line.
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _PINNED.fullmatch(line.strip())
        if not found:
            raise DataError(
                f"{path}:{number}: {line.strip()!r} does not pin one wheel; a line is NAME==VERSION "
                "--hash=sha256:HASH, with the 64 digits of one py3-none-any wheel, so that every machine reads the same"
            )
        wheels.append(PinnedWheel(*found.groups()))
    if not wheels:
        raise DataError(f"{path}: no package in it; a line is NAME==VERSION --hash=sha256:HASH")
    return wheels


def wheels_by_hash(directory: Path) -> dict[str, Path]:
    """Return the wheels of a directory by the SHA-256 of their bytes; one cut short has a hash that no list names."""
    return {sha256_file(path): path for path in sorted(directory.glob("*.whl"))}


def download(packages: Path, directory: Path) -> None:
    """Have pip download the wheels of a list into a directory; those that are there with the right hash stay.

    Only wheels, without what they depend on: building a source distribution would run code of the package.

    Raises:
        DataError: pip failed, with its last lines: no network, a full disk, a hash that the index does not have.
    """
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--no-deps"]
    command += ["--only-binary", ":all:", "--require-hashes", "--dest", str(directory), "--requirement", str(packages)]
    with tempfile.TemporaryDirectory(dir=directory) as scratch:  # pip, when interrupted, may leave all it has so far
        environment = os.environ | {"TMPDIR": scratch}
        done = subprocess.run(
            command, env=environment, stderr=subprocess.PIPE, text=True, errors="replace", check=False
        )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()][-_SHOWN_LINES:]
        raise DataError(
            "\n    ".join([f"{packages}: pip could not download its wheels (exit code {done.returncode}):", *said])
        )


def read_sources(wanted: Sequence[PinnedWheel], held: Mapping[str, Path], *, shortest: int, longest: int) -> Sources:
    """Read the ``.py`` files of wheels, each text once, in the order of packages and paths.

    Args:
        wanted: the list, in any order.
        held: wheels by their hashes.
        shortest: bytes of the shortest file that is taken.
        longest: bytes of the longest one; longer ones are not even decompressed.

    Raises:
        DataError: a wheel that is not held, is no sound zip file, or nothing that is left.
        OSError: a wheel that cannot be read.
    """
    files: list[SourceFile] = []
    left_out: Counter[str] = Counter()
    texts: set[str] = set()
    for package, sha256 in sorted(wanted):
        if sha256 not in held:
            raise DataError(f"{package}: none of {len(held)} wheels has the sha256 {sha256}; download it anew")
        for path, content in _members(held[sha256], shortest, longest, left_out):
            try:
                text = content.decode()
            except UnicodeDecodeError:
                left_out["files that are not UTF-8"] += 1
                continue
            if text in texts:
                left_out["copies of another file"] += 1
                continue
            texts.add(text)
            files.append(SourceFile(text, path, package))
    if not files:
        raise DataError(f"no .py file of {shortest} to {longest} bytes in any of {len(wanted)} wheels")
    return Sources(files, left_out)


def _members(wheel: Path, shortest: int, longest: int, left_out: Counter[str]) -> list[tuple[str, bytes]]:
    """Path and content of a wheel's ``.py`` files of the right length."""
    members = []
    try:
        with zipfile.ZipFile(wheel) as archive:
            for info in sorted(archive.infolist(), key=lambda info: info.filename):
                if not info.filename.endswith(".py"):
                    continue
                if info.file_size < shortest:
                    left_out[f"files below {shortest} bytes"] += 1
                elif info.file_size > longest:
                    left_out[f"files above {longest} bytes"] += 1
                else:
                    members.append((info.filename, archive.read(info)))
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise DataError(f"{wheel}: damaged wheel, no sound zip file ({error})") from error
    return members
