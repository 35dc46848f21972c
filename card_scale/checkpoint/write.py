"""The second phase of a save: one rank's files on disk. Local, so that it can run beside training."""

import collections
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from torch import Tensor

from card_scale import faults, files
from card_scale.checkpoint.format import StoredFile, StoredTensor, tensor_file
from card_scale.checkpoint.tensor_file import TensorFileWriter
from card_scale.errors import CheckpointError


@dataclass(frozen=True)
class Plan:
    """What one rank writes of a checkpoint, without the values."""

    step: int
    """Updates made."""
    stem: str
    """Name of the rank's files without folder and ending, another one on every rank."""
    shapes: dict[str, dict[str, list[int]]]
    """By folder and entry name, in the order in which they are written. Every rank has every folder, if nothing in
    it."""
    tensors: dict[str, StoredTensor]
    """By whole-model name: where the entries of each parameter lie."""


class Piece(NamedTuple):
    """One entry of a file."""

    folder: str
    entry: str
    tensor: Tensor
    """Float32 on CPU."""


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


def write(plan: Plan, pieces: Iterator[Piece], temporary: Path) -> RankShare:
    """Write pieces into a checkpoint's temporary directory, durably, one after the other. Makes no collective itself.

    All pieces are taken, whatever happens: other ranks may be waiting to gather the next ones.

    Raises CheckpointError, naming the file, where the file system refuses.
    """
    written: dict[str, StoredFile] = {}
    with contextlib.ExitStack() as stack:
        try:
            with saving(temporary):
                faults.reach("checkpoint.begin", plan.step)
            writers = {}
            for folder, shapes in plan.shapes.items():
                path = temporary / tensor_file(folder, plan.stem)
                with saving(path):
                    writers[folder] = stack.enter_context(TensorFileWriter(path, shapes))
            for folder, entry, tensor in pieces:
                with saving(writers[folder].path):
                    writers[folder].add(entry, tensor)
            for folder, writer in writers.items():
                with saving(writer.path):
                    written[tensor_file(folder, plan.stem)] = writer.finish()
                    faults.reach("checkpoint.file", plan.step)
                    files.commit(writer.path)
                    files.sync_directory(writer.path.parent)
        finally:
            collections.deque(pieces, maxlen=0)
    with saving(temporary):
        faults.reach("checkpoint.written", plan.step)
    return RankShare(plan.tensors, written)
