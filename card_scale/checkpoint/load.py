"""Reading a checkpoint into any layout and either engine."""

import torch
from torch import Tensor

from card_scale.checkpoint.format import WEIGHT
from card_scale.checkpoint.reader import CheckpointReader
from card_scale.engine.base import ShardingEngine
from card_scale.errors import CheckpointError
from card_scale.model.weights import LogicalWeight


def load(engine: ShardingEngine, reader: CheckpointReader, updates: int | None = None) -> None:
    """Set weights and optimizer states from a checkpoint. Every rank reads what it holds, without communication.

    ``updates`` is what the optimizer has counted; by default all of the checkpoint's.

    Raises CheckpointError where the checkpoint is of another model or lacks a state.
    """
    held = reader.manifest.state_keys
    missing = set(engine.state_keys()) - set(held)
    if missing:
        raise CheckpointError(
            f"checkpoint {reader.directory} holds {', '.join(held)}, but this run also needs "
            f"{', '.join(sorted(missing))}"
        )
    engine.create_optimizer_state(reader.manifest.step if updates is None else updates)
    for parameter, where in engine.weights():
        _check_same_parameter(reader, where)
        for key in engine.state_keys():
            engine.set_full_state(parameter, key, _local_part(reader, where, key))
    engine.publish_weights()


def load_weights(engine: ShardingEngine, reader: CheckpointReader) -> None:
    """Set the weights alone; the optimizer starts anew.

    Raises CheckpointError where the checkpoint is of another model.
    """
    for parameter, where in engine.weights():
        _check_same_parameter(reader, where)
        engine.set_full_state(parameter, WEIGHT, _local_part(reader, where, WEIGHT))
    engine.publish_weights()


def _check_same_parameter(reader: CheckpointReader, where: LogicalWeight) -> None:
    is_there = where.name in reader.manifest.tensors
    if not is_there or reader.shape(where.name) != where.global_shape:
        found = f"of shape {list(reader.shape(where.name))} there" if is_there else "not in it"
        raise CheckpointError(
            f"checkpoint {reader.directory} is of another model: {where.name}, here {list(where.global_shape)}, "
            f"is {found}"
        )


def _local_part(reader: CheckpointReader, where: LogicalWeight, key: str) -> Tensor:
    """Return the tensor-parallel rank's part of a parameter's state, float32 on CPU."""
    parts = [
        reader.read_slice(where.name, where.dimension, part.whole.start, part.whole.stop, key) for part in where.slices
    ]
    return torch.cat(parts, where.dimension) if len(parts) > 1 else parts[0]
