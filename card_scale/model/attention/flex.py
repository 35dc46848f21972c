"""FlexAttention of any kind: a block mask lets it skip what nobody sees."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from card_scale.model.attention.base import Attention
from card_scale.objectives.attention import AttentionKind, Bidirectional


class FlexAttention(Attention):
    """FlexAttention with a block mask, made once per length. It has no backward pass on a CPU (torch 2.13)."""

    backend: ClassVar[str] = "flex"
    trains_on: ClassVar[frozenset[str]] = frozenset({"cuda"})

    def __init__(self, kind: AttentionKind, compiled: bool = True):
        super().__init__(kind)
        from torch.nn.attention.flex_attention import flex_attention

        # Not compiled, it computes and masks all scores: right, but only fit for checking.
        self.flex_attention = torch.compile(flex_attention, dynamic=False) if compiled else flex_attention
        self.block_masks: dict[tuple[int, int, torch.device], object] = {}

    @classmethod
    def computes(cls, kind: AttentionKind) -> bool:  # noqa: ARG003 - any
        return True

    def prepare(self, positions: int, device: torch.device) -> None:
        if type(self.kind) is Bidirectional or (positions, positions, device) in self.block_masks:
            return
        from torch.nn.attention.flex_attention import create_block_mask

        for queries in {positions, self.kind.predictions(positions)}:
            self.block_masks[queries, positions, device] = create_block_mask(
                self._visible(positions), None, None, queries, positions, device=device
            )

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        block_mask = self.block_masks.get((query.shape[2], key.shape[2], query.device))
        grouped = query.shape[1] != key.shape[1]
        return self.flex_attention(
            query.contiguous(), key.contiguous(), value.contiguous(), block_mask=block_mask, enable_gqa=grouped
        )

    def _visible(self, positions: int) -> Callable[..., Tensor]:
        """FlexAttention's mask function: (batch, head, query index, key index) -> whether it may attend."""
        return lambda _batch, _head, query, key: self.kind.visible(query, key, positions)
