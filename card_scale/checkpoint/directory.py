"""The checkpoints of a run directory: naming, the pointer to the latest, and which one to resume from."""

import contextlib
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from card_scale import faults
from card_scale.checkpoint import format as checkpoint_format
from card_scale.checkpoint.format import CheckpointManifest
from card_scale.errors import CheckpointError
from card_scale.files import sync_directory, write_atomically

POINTER = "latest_checkpointed_iteration.txt"
_NAME = re.compile(r"iter_(\d{7,})")
_TEMPORARY_NAME = re.compile(r"iter_(\d{7,})\.tmp-[0-9a-f]{8}")
_DELETED_NAME = re.compile(r"iter_\d{7,}\.(pruned|replaced)-[0-9a-f]{8}")


def name_of(step: int) -> str:
    """Return the directory name of the checkpoint after ``step`` updates."""
    return f"iter_{step:07d}"


def temporary_name(step: int) -> str:
    """Return a fresh name under which a checkpoint is written before it is published."""
    return f"{name_of(step)}.tmp-{uuid.uuid4().hex[:8]}"


def pruned_name(step: int) -> str:
    """Return a fresh name under which a checkpoint is deleted: one that no resume looks at."""
    return f"{name_of(step)}.pruned-{uuid.uuid4().hex[:8]}"


def checkpoint_at(path: Path, what: str = "checkpoint") -> Path:
    """Return the directory of one checkpoint, with or without its files.

    Raises CheckpointError, saying what to give instead, for what is no such directory.
    """
    if not path.is_dir():
        raise CheckpointError(f"{what} {path}: there is no such directory")
    if (path / checkpoint_format.MANIFEST_NAME).exists():
        return path
    for root in (path, path / "checkpoints"):
        if steps := published_steps(root):
            raise CheckpointError(f"{what} {path} holds checkpoints; give one of them: {root / name_of(steps[0])}")
    if (path / "config.json").exists():
        raise CheckpointError(f"{what} {path} is a Hugging Face folder; import it first (tools/checkpoint.py import)")
    return path


def published_steps(root: Path) -> list[int]:
    """Return the steps of the checkpoints that have their name, newest first."""
    return sorted(
        (int(match[1]) for path in root.glob("iter_*") if (match := _NAME.fullmatch(path.name))), reverse=True
    )


def pointed_step(root: Path) -> int | None:
    """Return the step that the pointer names, None where it is missing or names none."""
    pointer = root / POINTER
    text = pointer.read_text(encoding="utf-8", errors="replace").strip() if pointer.is_file() else ""
    return int(text) if text.isdecimal() else None


def leftovers(root: Path, step: int) -> list[Path]:
    """Return what killed processes left: writes of steps up to ``step`` never published, deletions never finished."""
    found = []
    for path in sorted(root.glob("iter_*")):
        written = _TEMPORARY_NAME.fullmatch(path.name)
        if (written and int(written[1]) <= step) or _DELETED_NAME.fullmatch(path.name):
            found.append(path)
    return found


def unfinished(root: Path) -> list[Path]:
    """Return the directories of writes that were never published: what killed processes left, or one that goes on."""
    return [path for path in sorted(root.glob("iter_*")) if _TEMPORARY_NAME.fullmatch(path.name)]


def publish(temporary: Path, step: int) -> Path:
    """Give a complete checkpoint its name, then point to it. Returns its final path."""
    root = temporary.parent
    final = root / name_of(step)
    replaced = root / f"{final.name}.replaced-{uuid.uuid4().hex[:8]}"
    if final.exists():
        # One that a resume has refused, or of steps that a run which was set back makes again. It goes as a leftover,
        # once the pointer names its successor.
        final.rename(replaced)
    temporary.rename(final)
    try:
        sync_directory(root)
        faults.reach("checkpoint.named", step)
        write_atomically(root / POINTER, f"{step}\n".encode())
    except OSError:
        if pointed_step(root) != step or replaced.exists():  # what no pointer names is not published
            with contextlib.suppress(OSError):
                final.rename(temporary)
                if replaced.exists():
                    replaced.rename(final)
        raise
    return final


def complete_manifest(root: Path, step: int) -> CheckpointManifest:
    """Return the manifest of a published checkpoint; CheckpointError where it is not complete or of another step."""
    path = root / name_of(step)
    manifest = checkpoint_format.read_manifest(path)
    check_step(path, manifest)
    return manifest


def check_step(path: Path, manifest: CheckpointManifest) -> None:
    """Raise CheckpointError for a directory that has the name of another step's."""
    if _NAME.fullmatch(path.name) and path.name != name_of(manifest.step):
        raise CheckpointError(f"checkpoint {path}: its manifest is of step {manifest.step}")


def find_latest(
    root: Path, damaged: Mapping[int, str] = MappingProxyType({})
) -> tuple[Path, CheckpointManifest, list[str]] | None:
    """Return the checkpoint to resume from, its manifest and what was passed over; None where there is none at all.

    The pointer's checkpoint if it is complete, else the newest complete one; none of the steps that are known to be
    ``damaged``, with what is wrong. Raises CheckpointError where checkpoints exist but none is complete: starting from
    random weights would hide the loss.
    """
    steps, pointed = published_steps(root), pointed_step(root)
    candidates = [pointed, *(s for s in steps if s != pointed)] if pointed is not None else steps
    problems: list[str] = []
    for step in candidates:
        if step in damaged:
            problems.append(damaged[step])
            continue
        try:
            return root / name_of(step), complete_manifest(root, step), problems
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError("no complete checkpoint is left:\n  " + "\n  ".join(problems))
    return None
