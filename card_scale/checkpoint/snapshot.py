"""The first phase of a save: a copy of this rank's share in host memory, which training may leave behind."""

import torch
import torch.distributed as dist
from torch import Tensor

from card_scale.checkpoint.format import StoredPiece, StoredTensor, entry_name, folder_of
from card_scale.checkpoint.write import Snapshot
from card_scale.distributed import process_groups
from card_scale.engine.base import ShardingEngine


def snapshot(engine: ShardingEngine) -> Snapshot:
    """Return this rank's share of every state. Collective over the data-parallel group, one parameter at a time.

    The parameters of a stage are dealt out to its data-parallel ranks, so that all of them write at once.
    """
    stem = (
        f"tp{process_groups.tensor_rank():02d}-pp{process_groups.pipeline_rank():02d}"
        f"-dp{process_groups.data_rank():04d}"
    )
    data_rank, data_size = process_groups.data_rank(), dist.get_world_size(process_groups.data_group())
    entries: dict[str, dict[str, Tensor]] = {folder_of(key): {} for key in engine.state_keys()}
    tensors: dict[str, StoredTensor] = {}
    primary = [(parameter, where) for parameter, where in engine.weights() if where.is_primary]
    for number, (parameter, where) in enumerate(primary):
        mine = number % data_size == data_rank
        for key in engine.state_keys():
            whole = engine.full_state(parameter, key)
            if not mine:
                continue
            for piece in where.slices:
                part = whole.narrow(where.dimension, piece.local.start, piece.local.stop - piece.local.start)
                entry = entry_name(key, where.name, piece.whole.start, piece.whole.stop)
                entries[folder_of(key)][entry] = part.to("cpu", torch.float32, copy=True).contiguous()
        if mine:
            pieces = [StoredPiece(stem, piece.whole.start, piece.whole.stop) for piece in where.slices]
            tensors[where.name] = StoredTensor(list(where.global_shape), where.dimension, pieces)
    return Snapshot(stem, entries, tensors)
