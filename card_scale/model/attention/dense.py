"""Attention with the whole mask: the literal reading of any kind's definition."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from card_scale.model.attention.base import Attention
from card_scale.objectives.attention import AttentionKind


class DenseAttention(Attention):
    """Fused attention with the mask [positions, positions], made once per length."""

    backend: ClassVar[str] = "dense"
    trains_on: ClassVar[frozenset[str]] = frozenset({"cpu", "cuda"})

    def __init__(self, kind: AttentionKind):
        super().__init__(kind)
        self.mask = torch.empty(0, 0, dtype=torch.bool)

    @classmethod
    def computes(cls, kind: AttentionKind) -> bool:  # noqa: ARG003 - any
        return True

    def prepare(self, positions: int, device: torch.device) -> None:
        if len(self.mask) != positions or self.mask.device != device:
            index = torch.arange(positions, device=device)
            self.mask = self.kind.visible(index[:, None], index[None, :], positions)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        grouped = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=self.mask[: query.shape[2]], enable_gqa=grouped
        )
