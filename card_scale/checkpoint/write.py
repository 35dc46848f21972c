"""The second phase of a save: one rank's files on disk. Local, so that it can run beside training."""

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file

from card_scale import files
from card_scale.checkpoint.format import StoredFile, StoredTensor, tensor_file
from card_scale.checkpoint.snapshot import Snapshot


@dataclass(frozen=True)
class RankShare:
    """One rank's part of the manifest: what it has written, and into which files."""

    tensors: dict[str, StoredTensor]
    """By whole-model name."""
    files: dict[str, StoredFile]
    """By path inside the checkpoint."""


def write(snapshot: Snapshot, temporary: Path) -> RankShare:
    """Write a snapshot into a checkpoint's temporary directory, durably. Makes no collective."""
    written = {}
    for folder, tensors in snapshot.entries.items():
        name = tensor_file(folder, snapshot.stem)
        path = temporary / name
        path.parent.mkdir(parents=True, exist_ok=True)
        files.partial_path(path).touch()
        readable = files.partial_path(path).stat().st_mode
        save_file(tensors, files.partial_path(path))
        files.partial_path(path).chmod(readable)  # safetensors lets nobody but the user read it, whatever the umask
        written[name] = StoredFile.synced(files.partial_path(path))
        files.commit(path)
        files.sync_directory(path.parent)
    return RankShare(snapshot.tensors, written)
