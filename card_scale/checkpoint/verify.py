"""Whether the bytes of a checkpoint are those that were written: every file's SHA-256 against the manifest."""

from collections.abc import Mapping
from pathlib import Path

from card_scale.checkpoint.format import StoredFile
from card_scale.files import sha256_file


def share(files: Mapping[str, StoredFile], index: int, count: int) -> list[str]:
    """Return the files that one of ``count`` readers looks at: all of them together look at all, at like many bytes."""
    by_size = sorted(files, key=lambda name: (-files[name].bytes, name))
    return by_size[index::count]


def damaged_files(directory: Path, files: Mapping[str, StoredFile]) -> list[str]:
    """Return what is wrong with files, in words; nothing where their bytes are those that were written."""
    problems = []
    for name, stored in files.items():
        try:
            found = sha256_file(directory / name)
        except OSError as error:
            problems.append(f"checkpoint {directory}: file {name} cannot be read: {error.strerror}")
            continue
        if found != stored.sha256:
            problems.append(
                f"checkpoint {directory}: file {name} is damaged: its SHA-256 is {found[:12]}, the manifest says "
                f"{stored.sha256[:12]}"
            )
    return problems
