"""The first phase of a save: this rank's share of the state, copied to host memory one parameter after the other.

Taken one by one as they are written, the copies hold no more than one parameter at a time; taken all at once they are
what training may leave behind.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn

from card_scale.checkpoint.format import StoredPiece, StoredTensor, entry_name, folder_of
from card_scale.checkpoint.write import Piece, Plan
from card_scale.distributed import process_groups
from card_scale.engine.base import ShardingEngine
from card_scale.model.weights import LogicalWeight


def plan_of(engine: ShardingEngine, step: int) -> Plan:
    """Return what this rank writes after ``step`` updates.

    The parameters of a stage are dealt out to its data-parallel ranks, so that all of them write at once.
    """
    stem = (
        f"tp{process_groups.tensor_rank():02d}-pp{process_groups.pipeline_rank():02d}"
        f"-dp{process_groups.data_rank():04d}"
    )
    shapes: dict[str, dict[str, list[int]]] = {folder_of(key): {} for key in engine.state_keys()}
    tensors: dict[str, StoredTensor] = {}
    for _, where, mine in _dealt(engine):
        if not mine:
            continue
        for key in engine.state_keys():
            for piece in where.slices:
                shape = list(where.global_shape)
                shape[where.dimension] = piece.whole.stop - piece.whole.start
                shapes[folder_of(key)][entry_name(key, where.name, piece.whole.start, piece.whole.stop)] = shape
        pieces = [StoredPiece(stem, piece.whole.start, piece.whole.stop) for piece in where.slices]
        tensors[where.name] = StoredTensor(list(where.global_shape), where.dimension, pieces)
    return Plan(step, stem, shapes, tensors)


def pieces_of(engine: ShardingEngine) -> Iterator[Piece]:
    """Yield the pieces of :func:`plan_of` in its order, each a copy. Collective over the data-parallel group."""
    for parameter, where, mine in _dealt(engine):
        for key in engine.state_keys():
            whole = engine.full_state(parameter, key)
            if not mine:
                continue
            for piece in where.slices:
                part = whole.narrow(where.dimension, piece.local.start, piece.local.stop - piece.local.start)
                entry = entry_name(key, where.name, piece.whole.start, piece.whole.stop)
                yield Piece(folder_of(key), entry, part.to("cpu", torch.float32, copy=True).contiguous())


def _dealt(engine: ShardingEngine) -> Iterator[tuple[nn.Parameter, LogicalWeight, bool]]:
    """Yield the parameters that count once in the model, each with whether this data-parallel rank writes it."""
    data_rank, data_size = process_groups.data_rank(), dist.get_world_size(process_groups.data_group())
    primary = ((parameter, where) for parameter, where in engine.weights() if where.is_primary)
    for number, (parameter, where) in enumerate(primary):
        yield parameter, where, number % data_size == data_rank
