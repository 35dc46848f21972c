"""What all calls that build into one directory must agree on, and the directory while it is unfinished."""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from card_scale.corpus import sources
from card_scale.corpus.units import BUILD_DIRECTORY, Unit, has_finished_units
from card_scale.data.manifest import SPLITS, Manifest, index_name
from card_scale.errors import DataError
from card_scale.files import PARTIAL, write_atomically


def refuse_difference(directory: Path, existing: dict, plan: dict) -> None:
    """Raise DataError, naming what differs, where a directory was made otherwise than planned."""
    differences = sources.differences(existing, plan)
    if differences:
        raise DataError(
            f"{directory} was made otherwise: {'; '.join(differences)}; choose another directory or remove this one"
        )


def agree_on_plan(directory: Path, plan: dict[str, Any], work: list[Unit]) -> None:
    """Keep to the plan of the earlier call that left the directory unfinished, or make this the plan.

    Where the earlier call finished nothing, another plan simply replaces its own: a mistyped key costs nothing.

    Raises:
        DataError: the earlier call had another plan and finished a part of it; foreign files.
    """
    path = directory / BUILD_DIRECTORY / "plan.json"
    plan = plan | {"division into units": _digest(work)}
    if path.exists():
        try:
            existing = json.loads(path.read_bytes())
        except ValueError as error:
            raise DataError(f"{path}: not valid JSON ({error}); remove {directory} and build again") from error
        if has_finished_units(directory):
            refuse_difference(directory, existing, plan)
            return
        discard(directory)
    else:
        foreign = sorted(entry.name for entry in directory.iterdir() if entry.name != BUILD_DIRECTORY)
        if foreign:
            raise DataError(f"{directory}: holds {foreign[0]!r} and is no dataset; choose an empty or new directory")
    write_atomically(path, json.dumps(plan, indent=1).encode())


def _digest(work: list[Unit]) -> str:
    """Changes when a unit of the same number would hold something else."""
    digest = hashlib.sha256()
    for unit in work:
        for piece in unit.pieces:
            digest.update(f"{unit.number} {piece[1:]}\n".encode(errors="surrogateescape"))  # [0] is the path
    return digest.hexdigest()[:16]


def discard(directory: Path) -> None:
    """Remove what an unfinished build has made, so that the next call may have another plan.

    What it has encoded stays: it is used where a document comes again, and not otherwise.
    """
    for pattern in ("unit-*.json", "unit-*.index"):
        for path in (directory / BUILD_DIRECTORY).glob(pattern):
            path.unlink()
    patterns = [f"{split}-*.tar" for split in SPLITS]
    for pattern in (*patterns, *map(index_name, SPLITS), "tokenizer.*"):
        for path in directory.glob(pattern):
            path.unlink()
    _remove_partial(directory)


def finished(directory: Path, plan: dict) -> Manifest:
    """The manifest of a finished directory. Raises DataError where it was made otherwise than planned."""
    manifest = Manifest.load(directory)
    made = {
        "settings": manifest.settings,
        "sources": list(manifest.sources),
        "tokenizer": manifest.tokenizer.sha256,
    }
    refuse_difference(directory, made, plan)
    return manifest


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold an unfinished directory, made where there is none; the system lets go of it even after a kill.

    The lock goes with the rest of a finished build, so its next holder must look for a manifest first.

    Raises:
        DataError: another process holds it.
    """
    with _lock_file(directory) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"{directory}: another build is at work there; wait for it or stop it") from error
        yield


def _lock_file(directory: Path) -> TextIO:
    path = directory / BUILD_DIRECTORY / "lock"
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return path.open("w")
        except FileNotFoundError:  # another process has finished and cleaned the directory between these two lines
            continue


def clean(directory: Path) -> None:
    """Remove what only an unfinished build needs, and what interrupted ones left. To be called inside ``locked``."""
    _remove_partial(directory)
    shutil.rmtree(directory / BUILD_DIRECTORY, ignore_errors=True)


def _remove_partial(directory: Path) -> None:
    for path in directory.glob(f"*{PARTIAL}"):
        path.unlink(missing_ok=True)
