"""Torch's fused attention, without a mask or with the causal one that it knows."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

from card_scale.model.attention.base import Attention
from card_scale.objectives.attention import AttentionKind, Bidirectional, Causal, StrictBlockCausal


class FusedAttention(Attention):
    """``scaled_dot_product_attention``: the best kernel that torch has for the device.

    Two streams of one-token blocks are two causal triangles over the same keys.
    """

    backend: ClassVar[str] = "sdpa"
    trains_on: ClassVar[frozenset[str]] = frozenset({"cpu", "cuda"})

    @classmethod
    def computes(cls, kind: AttentionKind) -> bool:
        return type(kind) in (Causal, Bidirectional) or (type(kind) is StrictBlockCausal and kind.block == 1)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if isinstance(self.kind, StrictBlockCausal):
            length = key.shape[2] // 2
            content = key[:, :, length:], value[:, :, length:]
            streams = [_attend(stream, *content, is_causal=True) for stream in query.split(length, dim=2)]
            return streams[0] if len(streams) == 1 else torch.cat(streams, dim=2)
        return _attend(query, key, value, is_causal=isinstance(self.kind, Causal))

    def describe(self, query: Tensor, key: Tensor) -> str:
        grouped = query.shape[1] != key.shape[1]
        is_causal = not isinstance(self.kind, Bidirectional)
        # What scaled_dot_product_attention itself asks; it has no public name (torch 2.13).
        chosen = torch._fused_sdp_choice(query, key, key, is_causal=is_causal, enable_gqa=grouped)
        return f"{self.backend} ({SDPBackend(chosen).name.lower().replace('_', ' ')})"


def _attend(query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, is_causal=is_causal, enable_gqa=grouped)
