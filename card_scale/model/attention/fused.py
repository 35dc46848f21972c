"""Torch's fused attention, without a mask or with the causal one that it knows."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from card_scale.model.attention.base import Attention
from card_scale.objectives.attention import AttentionKind, Bidirectional, Causal


class FusedAttention(Attention):
    """``scaled_dot_product_attention``: the best kernel that torch has for the device."""

    backend: ClassVar[str] = "sdpa"
    kinds: ClassVar[frozenset[type[AttentionKind]]] = frozenset({Causal, Bidirectional})
    trains_on: ClassVar[frozenset[str]] = frozenset({"cpu", "cuda"})

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        grouped = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=isinstance(self.kind, Causal), enable_gqa=grouped
        )
