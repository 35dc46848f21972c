"""The checkpoints of a run directory: naming, the pointer to the latest, and which one to resume from."""

import json
import re
import uuid
from pathlib import Path
from typing import Any

from card_scale.checkpoint import format as checkpoint_format
from card_scale.checkpoint.format import CheckpointManifest
from card_scale.errors import CheckpointError
from card_scale.files import sync_directory, write_atomically

POINTER = "latest_checkpointed_iteration.txt"
_NAME = re.compile(r"iter_(\d{7,})")


def name_of(step: int) -> str:
    """Return the directory name of the checkpoint after ``step`` updates."""
    return f"iter_{step:07d}"


def temporary_name(step: int) -> str:
    """Return a fresh name under which a checkpoint is written before it is published."""
    return f"{name_of(step)}.tmp-{uuid.uuid4().hex[:8]}"


def publish(temporary: Path, step: int) -> Path:
    """Give a complete checkpoint its name, then point to it. Returns its final path."""
    root = temporary.parent
    final = root / name_of(step)
    if final.exists():
        # Only a checkpoint that a resume has refused can be in the way. Keep it for inspection.
        final.rename(root / f"{final.name}.replaced-{uuid.uuid4().hex[:8]}")
    temporary.rename(final)
    sync_directory(root)
    write_atomically(root / POINTER, f"{step}\n".encode())
    return final


def find_latest(root: Path) -> tuple[Path, CheckpointManifest, list[str]] | None:
    """Return the checkpoint to resume from, its manifest and what was passed over; None where there is none at all.

    The pointer's checkpoint if it is complete, else the newest complete one. Raises CheckpointError where checkpoints
    exist but none is complete: starting from random weights would hide the loss.
    """
    steps = sorted(
        (int(match[1]) for path in root.glob("iter_*") if (match := _NAME.fullmatch(path.name))), reverse=True
    )
    pointed = _pointed_step(root)
    candidates = [pointed, *(s for s in steps if s != pointed)] if pointed is not None else steps
    problems = []
    for step in candidates:
        path = root / name_of(step)
        try:
            manifest = checkpoint_format.read_manifest(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if manifest.step != step:
            problems.append(f"checkpoint {path}: its manifest is of step {manifest.step}")
            continue
        return path, manifest, problems
    if problems:
        raise CheckpointError("no complete checkpoint is left:\n  " + "\n  ".join(problems))
    return None


def read_state(path: Path) -> dict[str, Any]:
    """Return the small state (step, cursor, ...) of a complete checkpoint."""
    return json.loads((path / "state.json").read_text(encoding="utf-8"))


def _pointed_step(root: Path) -> int | None:
    pointer = root / POINTER
    text = pointer.read_text(encoding="utf-8", errors="replace").strip() if pointer.is_file() else ""
    return int(text) if text.isdecimal() else None
