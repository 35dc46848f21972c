"""Exact attention of block-wise kinds from dense pieces, with a backward pass on every device."""

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from card_scale.model.attention.base import Attention
from card_scale.objectives.attention import AttentionKind, BlockCausal, BlockDiffusion, StrictBlockCausal

CHUNK_QUERIES = 128
"""Queries that are taken at a time, unless a block is larger: fewer leave less hidden work, more make larger
products."""


class Chunk(NamedTuple):
    """Consecutive queries, and the keys that any of them sees."""

    queries: slice
    keys: tuple[slice, ...]
    mask: Tensor | None
    """bool [queries, keys], which of these keys each of them sees; None where each sees all."""


class SplitAttention(Attention):
    """The queries are taken in chunks of whole blocks, each attended to the keys that some of its queries see.

    A mask, made once per length, hides the rest of them. Of block diffusion about L^2 + 2 L * chunk pairs are computed,
    of the dense mask's 4 L^2.
    """

    backend: ClassVar[str] = "split"
    trains_on: ClassVar[frozenset[str]] = frozenset({"cpu", "cuda"})
    kind: BlockDiffusion | BlockCausal | StrictBlockCausal

    def __init__(self, kind: BlockDiffusion | BlockCausal | StrictBlockCausal):
        super().__init__(kind)
        self.chunk = kind.block * max(1, CHUNK_QUERIES // kind.block)
        self.prepared_for: tuple[int, torch.device] | None = None
        self.chunks: list[Chunk] = []

    @classmethod
    def computes(cls, kind: AttentionKind) -> bool:
        return type(kind) in (BlockDiffusion, BlockCausal, StrictBlockCausal)

    def prepare(self, positions: int, device: torch.device) -> None:
        if self.prepared_for == (positions, device):
            return
        length = positions // self.kind.inputs_per_token
        index = torch.arange(positions)
        self.chunks = []
        for stream in range(0, positions, length):
            for begin in range(stream, stream + length, self.chunk):
                queries = slice(begin, min(begin + self.chunk, stream + length))
                visible = self.kind.visible(index[queries, None], index[None, :], positions)
                keys = _runs(visible.any(0))
                mask = torch.cat([visible[:, run] for run in keys], dim=1)
                self.chunks.append(Chunk(queries, keys, None if mask.all() else mask.to(device)))
        self.prepared_for = (positions, device)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        grouped = query.shape[1] != key.shape[1]
        return torch.cat(
            [
                F.scaled_dot_product_attention(
                    query[:, :, chunk.queries],
                    _joined(key, chunk.keys),
                    _joined(value, chunk.keys),
                    attn_mask=chunk.mask,
                    enable_gqa=grouped,
                )
                for chunk in self.chunks
                if chunk.queries.stop <= query.shape[2]
            ],
            dim=2,
        )


def _runs(seen: Tensor) -> tuple[slice, ...]:
    """bool [keys], true somewhere → the runs of true ones."""
    edges = torch.diff(seen.int(), prepend=torch.zeros(1, dtype=torch.int), append=torch.zeros(1, dtype=torch.int))
    begins, ends = (edges == 1).nonzero().flatten().tolist(), (edges == -1).nonzero().flatten().tolist()
    return tuple(map(slice, begins, ends))


def _joined(states: Tensor, parts: tuple[slice, ...]) -> Tensor:
    """The parts of ``states`` [B, heads, keys, head size] along its keys; a single one is not copied."""
    views = [states[:, :, part] for part in parts]
    return views[0] if len(views) == 1 else torch.cat(views, dim=2)
