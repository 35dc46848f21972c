"""Checkpoints without an engine: tensors cut by hand, written by the phases of a save."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from card_scale.checkpoint import directory as directories
from card_scale.checkpoint.format import (
    MANIFEST_NAME,
    CheckpointManifest,
    StoredPiece,
    StoredTensor,
    entry_name,
    folder_of,
)
from card_scale.checkpoint.run_files import RunFiles
from card_scale.checkpoint.write import Piece, Plan, write

TOKENIZER = Path(__file__).parent / "data/iter_0000002/tokenizer.model"
"""A stand-in, never read as a tokenizer."""

Cut = tuple[int, list[StoredPiece]]
"""The dimension along which a tensor is cut, and its pieces."""


def description(step: int, state_keys: list[str]) -> CheckpointManifest:
    return CheckpointManifest(step, state_keys, "by hand", "none", "tokenizer", "data", {}, {}, {})


def run_files(step: int) -> RunFiles:
    return RunFiles({"step": step}, "run: {}\n", TOKENIZER)


def snapshots(states: Mapping[str, Mapping[str, Tensor]], cuts: Mapping[str, Cut]) -> list[tuple[Plan, list[Piece]]]:
    """Return plan and pieces of each file of the tensors ``states[key][name]``, cut as ``cuts[name]`` says."""
    found: dict[str, tuple[Plan, list[Piece]]] = {}
    for name, (dimension, pieces) in cuts.items():
        for piece in pieces:
            empty = Plan(0, piece.file, {folder_of(key): {} for key in states}, {})
            plan, held = found.setdefault(piece.file, (empty, []))
            for key, tensors in states.items():
                part = tensors[name].narrow(dimension, piece.start, piece.stop - piece.start)
                entry = entry_name(key, name, piece.start, piece.stop)
                plan.shapes[folder_of(key)][entry] = list(part.shape)
                held.append(Piece(folder_of(key), entry, part.contiguous()))
            known = StoredTensor(list(next(iter(states.values()))[name].shape), dimension)
            plan.tensors.setdefault(name, known).pieces.append(piece)
    return list(found.values())


def publish(root: Path, step: int, states: Mapping[str, Mapping[str, Tensor]], cuts: Mapping[str, Cut]) -> Path:
    """Write and publish a checkpoint in this process alone; return its directory."""
    temporary = root / directories.temporary_name(step)
    temporary.mkdir(parents=True)
    manifest = description(step, list(states))
    manifest.files |= run_files(step).write(temporary)
    for plan, pieces in snapshots(states, cuts):
        manifest.files |= write(plan, iter(pieces), temporary).files
    for name, (dimension, pieces) in cuts.items():
        shape = list(next(iter(states.values()))[name].shape)
        manifest.tensors[name] = StoredTensor(shape, dimension, pieces)
    (temporary / MANIFEST_NAME).write_text(manifest.to_json())
    return directories.publish(temporary, step)
