"""A checkpoint of weights that one process holds whole: what is imported, not trained here."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from card_scale.checkpoint import directory as directories
from card_scale.checkpoint.format import (
    MANIFEST_NAME,
    WEIGHT,
    CheckpointManifest,
    StoredPiece,
    StoredTensor,
    entry_name,
    folder_of,
)
from card_scale.checkpoint.run_files import RunFiles
from card_scale.checkpoint.write import Piece, Plan, saving, write
from card_scale.environment import library_versions
from card_scale.errors import CheckpointError
from card_scale.files import removed_on_failure, sync_directory, write_atomically

STEM = "all"
"""Name of the one file of tensors."""


def write_whole(
    directory: Path, weights: Mapping[str, Tensor], run_files: RunFiles, tokenizer_sha256: str, origin: str
) -> None:
    """Write a complete checkpoint after 0 updates.

    Args:
        directory: to create; nothing may stand there.
        weights: float32 by whole-model name.
        run_files: configuration, tokenizer and state.
        tokenizer_sha256: hash of the tokenizer's model file.
        origin: where the weights come from, in place of an engine.

    Raises:
        CheckpointError: ``directory`` exists, or the file system refuses.
    """
    if directory.exists():
        raise CheckpointError(f"checkpoint {directory} exists; choose another name or remove it")
    tensors = {
        name: StoredTensor(list(value.shape), 0, [StoredPiece(STEM, 0, len(value))]) for name, value in weights.items()
    }
    folder = folder_of(WEIGHT)
    pieces = [Piece(folder, entry_name(WEIGHT, name, 0, len(value)), value) for name, value in weights.items()]
    plan = Plan(0, STEM, {folder: {piece.entry: list(piece.tensor.shape) for piece in pieces}}, tensors)
    temporary = directory.with_name(f"{directory.name}.{directories.temporary_name(0).partition('.')[2]}")
    with saving(temporary), removed_on_failure(temporary):
        temporary.mkdir(parents=True)
        files = run_files.write(temporary) | write(plan, iter(pieces), temporary).files
        manifest = CheckpointManifest(
            step=0,
            state_keys=[WEIGHT],
            layout="whole",
            engine=origin,
            tokenizer_sha256=tokenizer_sha256,
            data_digest="none",
            versions=library_versions(),
            tensors=tensors,
            files=files,
        )
        manifest.check_complete(temporary)
        write_atomically(temporary / MANIFEST_NAME, manifest.to_json().encode())
        temporary.rename(directory)
        sync_directory(directory.parent)
