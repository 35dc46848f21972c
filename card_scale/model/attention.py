"""Core attention, with the kind of visibility an objective asks for and the best kernel of the device."""

import torch.nn.functional as F
from torch import Tensor, nn


class CoreAttention(nn.Module):
    """Scaled dot-product attention in Megatron's core-attention slot.

    Megatron's unfused kernel needs the CUDA random-number tracker; torch's runs everywhere and picks cuDNN or Flash
    kernels on a GPU. ``kind`` is the objective's attention: "causal" lets position i see positions <= i.
    """

    def __init__(self, *, kind: str, **megatron_arguments):  # noqa: ARG002 - Megatron passes config, layer number, ...
        super().__init__()
        if kind != "causal":
            raise ValueError(f"attention kind {kind!r} is unknown; valid: causal")
        self.kind = kind

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *_, **megatron_arguments) -> Tensor:  # noqa: ARG002
        """Attend. Query, key, value: [L, B, heads, head size] -> [L, B, heads * head size]."""
        query, key, value = (states.permute(1, 2, 0, 3) for states in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return mixed.permute(2, 0, 1, 3).flatten(2)
