"""Reading a checkpoint into any layout and either engine."""

from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from card_scale.checkpoint.format import CheckpointManifest
from card_scale.checkpoint.save import entry_name, folder_of
from card_scale.engine.base import ShardingEngine
from card_scale.errors import CheckpointError
from card_scale.model.weights import LogicalWeight


def load(engine: ShardingEngine, directory: Path, manifest: CheckpointManifest) -> None:
    """Set weights and optimizer states from a complete checkpoint. Every rank reads what it holds, no communication.

    Raises CheckpointError where the checkpoint is of another model or lacks a state.
    """
    missing = set(engine.state_keys()) - set(manifest.state_keys)
    if missing:
        raise CheckpointError(
            f"checkpoint {directory} holds {', '.join(manifest.state_keys)}, but this run also needs "
            f"{', '.join(sorted(missing))}"
        )
    engine.create_optimizer_state(manifest.step)
    with _Reader(directory, manifest) as reader:
        for parameter, where in engine.weights():
            for key in engine.state_keys():
                engine.set_full_state(parameter, key, reader.read(key, where))
    engine.publish_weights()


class _Reader:
    """Opens each file of a checkpoint once and assembles a rank's part of a tensor from stored pieces."""

    def __init__(self, directory: Path, manifest: CheckpointManifest):
        self.directory, self.manifest = directory, manifest
        self.files: dict[str, safe_open] = {}
        self.stack = ExitStack()

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *error) -> None:
        self.stack.close()

    def read(self, key: str, where: LogicalWeight) -> Tensor:
        """Return this rank's part of a parameter's state, float32 on CPU."""
        stored = self.manifest.tensors.get(where.name)
        if stored is None or tuple(stored.shape) != where.global_shape:
            found = "not in it" if stored is None else f"of shape {stored.shape} there"
            raise CheckpointError(
                f"checkpoint {self.directory} is of another model: {where.name}, here {list(where.global_shape)}, "
                f"is {found}"
            )
        parts = []
        for wanted in where.slices:
            position, end = wanted.whole.start, wanted.whole.stop
            for piece in sorted(stored.pieces, key=lambda piece: piece.start):
                first, last = max(position, piece.start), min(end, piece.stop)
                if first >= last:
                    continue
                entry = entry_name(key, where.name, piece.start, piece.stop)
                parts.append(
                    self._slice(
                        f"{folder_of(key)}/{piece.file}.safetensors",
                        entry,
                        stored.dimension,
                        first - piece.start,
                        last - piece.start,
                    )
                )
                position = last
        return torch.cat(parts, stored.dimension) if len(parts) > 1 else parts[0]

    def _slice(self, file: str, entry: str, dimension: int, start: int, stop: int) -> Tensor:
        try:
            if file not in self.files:
                self.files[file] = self.stack.enter_context(safe_open(self.directory / file, framework="pt"))
            view = self.files[file].get_slice(entry)
            return view[start:stop] if dimension == 0 else view[:, start:stop]
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"checkpoint {self.directory}: file {file}: {error}") from None
