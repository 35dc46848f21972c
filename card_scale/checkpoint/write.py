"""The second phase of a save: one rank's files on disk. Local, so that it can run beside training."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from card_scale import files
from card_scale.checkpoint.format import StoredFile, StoredTensor, tensor_file
from card_scale.errors import CheckpointError


@dataclass(frozen=True)
class Snapshot:
    """What one rank writes of a checkpoint. Nothing in it changes when the engine goes on."""

    stem: str
    """Name of the rank's files without folder and ending, another one on every rank."""
    entries: dict[str, dict[str, Tensor]]
    """By folder and entry name: float32 tensors on CPU. Every rank has every folder, if nothing in it."""
    tensors: dict[str, StoredTensor]
    """By whole-model name: where the entries of each parameter lie."""


@dataclass(frozen=True)
class RankShare:
    """One rank's part of the manifest: what it has written, and into which files."""

    tensors: dict[str, StoredTensor]
    """By whole-model name."""
    files: dict[str, StoredFile]
    """By path inside the checkpoint."""


@contextlib.contextmanager
def saving(path: Path) -> Iterator[None]:
    """Turn a refusal by the file system (no space, no permission) into a CheckpointError that names ``path``."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be saved: {error}") from error


def write(snapshot: Snapshot, temporary: Path) -> RankShare:
    """Write a snapshot into a checkpoint's temporary directory, durably. Makes no collective.

    Raises CheckpointError, naming the file, where the file system refuses.
    """
    written = {}
    for folder, tensors in snapshot.entries.items():
        name = tensor_file(folder, snapshot.stem)
        path = temporary / name
        with saving(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            files.partial_path(path).touch()
            readable = files.partial_path(path).stat().st_mode
            save_file(tensors, files.partial_path(path))
            files.partial_path(path).chmod(readable)  # safetensors lets nobody but the user read it, whatever the umask
            written[name] = StoredFile.synced(files.partial_path(path))
            files.commit(path)
            files.sync_directory(path.parent)
    return RankShare(snapshot.tensors, written)
