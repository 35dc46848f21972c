"""Reading a checkpoint without an engine: no process group, no Megatron, no DeepSpeed."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from card_scale.checkpoint.format import (
    CONFIG_NAME,
    STATE_NAME,
    TOKENIZER_STEM,
    CheckpointManifest,
    StoredPiece,
    StoredTensor,
    entry_name,
    folder_of,
    read_manifest,
    tensor_file,
)
from card_scale.engine.state_keys import WEIGHT
from card_scale.errors import CheckpointError


class CheckpointReader:
    """A complete checkpoint, whatever layout wrote it. A context manager; each file is opened once, when first needed.

    Args:
        directory: of the checkpoint (``checkpoints/iter_0000100``).
        manifest: of the checkpoint where it has been read and checked already; else it is here.

    Raises:
        CheckpointError: for a checkpoint that is incomplete or of another format.
    """

    def __init__(self, directory: Path, manifest: CheckpointManifest | None = None):
        self.directory = directory
        self.manifest = read_manifest(directory) if manifest is None else manifest
        self._files: dict[str, safe_open] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "CheckpointReader":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def config_path(self) -> Path:
        """The run's resolved configuration."""
        return self.directory / CONFIG_NAME

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer's file. Raises CheckpointError where there is none."""
        for name in self.manifest.files:
            if Path(name).stem == TOKENIZER_STEM:
                return self.directory / name
        raise CheckpointError(f"checkpoint {self.directory}: the manifest names no tokenizer")

    @property
    def state(self) -> dict[str, Any]:
        """The small state: step, samples, tokens, epoch, cursor, seed, and what the objective has found."""
        path = self.directory / STATE_NAME
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"checkpoint {self.directory}: {STATE_NAME} is damaged: {error}") from None

    def names(self) -> list[str]:
        """Return the whole-model names of the parameters (``layers.7.mlp.linear_fc1.weight``)."""
        return list(self.manifest.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a whole parameter; CheckpointError for a name that is not in the checkpoint."""
        return tuple(self._stored(name).shape)

    def read(self, name: str, key: str = WEIGHT) -> Tensor:
        """Return a whole parameter, or the state ``key`` of it (``exp_avg``, ``ema``, ...): float32 on CPU.

        Raises CheckpointError for a name or a state that is not in the checkpoint.
        """
        stored = self._stored(name)
        return self.read_slice(name, stored.dimension, 0, stored.shape[stored.dimension], key)

    def read_slice(self, name: str, dimension: int, start: int, stop: int, key: str = WEIGHT) -> Tensor:
        """Return indices [start, stop) along a dimension of what :meth:`read` returns, reading no more than them.

        Raises CheckpointError for a name, a state or a range that is not in the checkpoint.
        """
        stored = self._stored(name)
        if key not in self.manifest.state_keys:
            raise CheckpointError(
                f"checkpoint {self.directory} holds no state {key!r} of {name}; it has "
                f"{', '.join(self.manifest.state_keys)}"
            )
        if not 0 <= dimension < len(stored.shape) or not 0 <= start < stop <= stored.shape[dimension]:
            raise CheckpointError(
                f"checkpoint {self.directory}: [{start}:{stop}] along dimension {dimension} is no range of {name}, "
                f"whose shape is {stored.shape}"
            )
        box = [(0, size) for size in stored.shape]
        box[dimension] = (start, stop)
        first, last = box[stored.dimension]
        parts = []
        for piece in sorted(stored.pieces, key=lambda piece: piece.start):
            begin, end = max(first, piece.start), min(last, piece.stop)
            if begin < end:
                box[stored.dimension] = (begin - piece.start, end - piece.start)
                parts.append(self._read_piece(name, key, piece, tuple(slice(*bounds) for bounds in box)))
        return torch.cat(parts, stored.dimension) if len(parts) > 1 else parts[0]

    def _stored(self, name: str) -> StoredTensor:
        if name not in self.manifest.tensors:
            raise CheckpointError(
                f"checkpoint {self.directory} holds no parameter {name!r}; it has {', '.join(self.manifest.tensors)}"
            )
        return self.manifest.tensors[name]

    def _read_piece(self, name: str, key: str, piece: StoredPiece, box: tuple[slice, ...]) -> Tensor:
        """Return a box of a stored piece, in the piece's own indices."""
        file = tensor_file(folder_of(key), piece.file)
        try:
            if file not in self._files:
                self._files[file] = self._stack.enter_context(safe_open(self.directory / file, framework="pt"))
            return self._files[file].get_slice(entry_name(key, name, piece.start, piece.stop))[box]
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"checkpoint {self.directory}: file {file}: {error}") from None
