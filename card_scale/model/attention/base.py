"""What every attention kernel is: scaled dot-product attention of one kind, for Megatron's layers."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from card_scale.model.rotary import Rotation, rotated
from card_scale.objectives.attention import AttentionKind

AttentionFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Query [positions, B, heads, head size], key and value [positions, B, key-value heads, head size] → [positions that
are asked for, B, heads * head size]."""


class Attention(ABC):
    """Scaled dot-product attention of one kind; one object serves all layers of a model chunk."""

    backend: ClassVar[str]
    """Value of ``model.attention_backend``."""
    trains_on: ClassVar[frozenset[str]]
    """Device types on which it has a backward pass."""

    def __init__(self, kind: AttentionKind):
        self.kind = kind
        # Bound once: a new object in every pass would make torch.compile start over.
        self.everywhere: AttentionFunction = self._attend_everywhere
        """Attention of all positions."""
        self.for_predictions: AttentionFunction = self._attend_for_predictions
        """Attention of the positions that predict: all that is needed of the last wide layer."""

    @classmethod
    @abstractmethod
    def computes(cls, kind: AttentionKind) -> bool:
        """Whether the kernel can compute a kind. Not one derived from what it knows, which may see other positions."""

    def prepare(self, positions: int, device: torch.device) -> None:  # noqa: B027 - not every kernel has a mask
        """Make what passes over ``positions`` positions need; called before each, cheap after the first."""

    @abstractmethod
    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Query [B, heads, positions, head size], key and value [B, key-value heads, positions, head size] → like the
        query, whose positions are the first: all, or those that predict. Each key-value head serves as many consecutive
        query heads as their numbers' quotient."""

    def describe(self, query: Tensor, key: Tensor) -> str:  # noqa: ARG002 - most backends have one kernel
        """Name what computes the attention of tensors like these, as :meth:`attend` takes them."""
        return self.backend

    def _attend_everywhere(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (states.permute(1, 2, 0, 3) for states in (query, key, value))
        return self.attend(query, key, value).permute(2, 0, 1, 3).flatten(2)

    def _attend_for_predictions(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self._attend_everywhere(query[: self.kind.predictions(len(query))], key, value)


class CoreAttention(nn.Module):
    """The core-attention slot of Megatron's SelfAttention; its attention mask is here the attention itself, and the
    rotation of queries and keys before it."""

    def __init__(self, **megatron_arguments):  # noqa: ARG002 - Megatron passes config, layer number, ...
        super().__init__()

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention: tuple[AttentionFunction, Rotation], **_
    ) -> Tensor:
        """Return the attention of the turned queries to the turned keys."""
        attend, turn = attention
        return attend(rotated(query, turn), rotated(key, turn), value)
