"""Exact block diffusion from dense pieces, with a backward pass on every device."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from card_scale.model.attention.base import Attention
from card_scale.objectives.attention import AttentionKind, BlockDiffusion

CHUNK_QUERIES = 128
"""Queries that are taken at a time, unless a block is larger: fewer leave less hidden work, more make larger
products."""


class SplitBlockDiffusion(Attention):
    """The queries are taken in chunks of whole blocks.

    A chunk of either half is attended to the keys that some of its queries see, which is the clean sample up to the
    chunk's end and, for the noisy half, the noisy chunk itself; a mask, made once per length, hides the rest. About
    L^2 + 2 L * chunk pairs are computed, of the dense mask's 4 L^2.
    """

    backend: ClassVar[str] = "split"
    kinds: ClassVar[frozenset[type[AttentionKind]]] = frozenset({BlockDiffusion})
    trains_on: ClassVar[frozenset[str]] = frozenset({"cpu", "cuda"})
    kind: BlockDiffusion

    def __init__(self, kind: BlockDiffusion):
        super().__init__(kind)
        self.chunk = kind.block * max(1, CHUNK_QUERIES // kind.block)
        self.prepared_for: tuple[int, torch.device] | None = None
        self.masks: dict[tuple[bool, int], Tensor] = {}
        """By (noisy half, first query of the chunk): bool [queries, keys]; none for a chunk of one block, which sees
        all of its keys."""

    def prepare(self, positions: int, device: torch.device) -> None:
        if self.prepared_for == (positions, device):
            return
        length = positions // 2
        index = torch.arange(positions, device=device)
        self.masks = {}
        for noisy in (True, False):
            for begin in range(0, length, self.chunk):
                end = min(begin + self.chunk, length)
                if end - begin > self.kind.block:
                    first = 0 if noisy else length
                    queries = index[first + begin : first + end]
                    keys = _joined(index, self._keys(noisy, begin, end, length), dim=0)
                    self.masks[noisy, begin] = self.kind.visible(queries[:, None], keys[None, :], positions)
        self.prepared_for = (positions, device)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        length = key.shape[2] // 2
        grouped = query.shape[1] != key.shape[1]
        halves = (True,) if query.shape[2] == length else (True, False)
        chunks = []
        for noisy in halves:
            for begin in range(0, length, self.chunk):
                end = min(begin + self.chunk, length)
                first = 0 if noisy else length
                seen = self._keys(noisy, begin, end, length)
                chunks.append(
                    F.scaled_dot_product_attention(
                        query[:, :, first + begin : first + end],
                        _joined(key, seen, dim=2),
                        _joined(value, seen, dim=2),
                        attn_mask=self.masks.get((noisy, begin)),
                        enable_gqa=grouped,
                    )
                )
        return torch.cat(chunks, dim=2)

    def _keys(self, noisy: bool, begin: int, end: int, length: int) -> list[slice]:
        """The keys that some query of a chunk sees: clean ones, and for the noisy half the chunk's own."""
        if noisy:
            return [slice(length, length + end - self.kind.block), slice(begin, end)]
        return [slice(length, length + end)]


def _joined(states: Tensor, parts: list[slice], dim: int) -> Tensor:
    """The parts of ``states`` along a dimension; a single one is not copied."""
    views = [states.narrow(dim, part.start, part.stop - part.start) for part in parts]
    return views[0] if len(views) == 1 else torch.cat(views, dim)
