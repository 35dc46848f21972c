"""Which attention each layer of a model has: one kind in all of them, or another behind the wide ones."""

import torch

from card_scale.config import ModelConfig
from card_scale.model.attention.base import Attention, AttentionFunction
from card_scale.model.attention.selection import create_attention, usable_backend
from card_scale.objectives.attention import AttentionKind


class LayerAttention:
    """The attention of all layers, of one kind; one object serves a model chunk.

    Attributes:
        kind: of the wide layers, which compute all positions.
        wide: their kernel.
        narrow: that of the layers behind them, None where there are none.
    """

    def __init__(self, kind: AttentionKind, layers: int, backend: str, device: torch.device):
        """Choose kernels for a model of ``layers`` layers.

        Raises ConfigurationError for a backend that the kind or the device does not have.
        """
        self.kind, self.layers, self.backend, self.device = kind, layers, backend, device
        self.wide_layers = kind.wide_layers(layers)
        self.wide: Attention = create_attention(kind, backend, device)
        self.narrow: Attention | None = None
        if self.wide_layers < layers:
            narrow = kind.behind_wide_layers
            self.narrow = create_attention(narrow, usable_backend(narrow, backend, device), device)
        self._others: dict[AttentionKind, LayerAttention] = {}

    def of_kind(self, kind: AttentionKind | None) -> "LayerAttention":
        """This one, or that of a kind which some batches have, made once."""
        if kind is None or kind == self.kind:
            return self
        if kind not in self._others:
            backend = usable_backend(kind, self.backend, self.device)
            self._others[kind] = LayerAttention(kind, self.layers, backend, self.device)
        return self._others[kind]

    def describe(self, model: ModelConfig, tensor_parallel: int, dtype: torch.dtype) -> str:
        """Name the kernels that compute a rank's heads: torch chooses by head size, type and device."""
        heads, shared = model.heads // tensor_parallel, model.key_value_heads // tensor_parallel
        named = []
        for kernel in self.kernels:
            query, key = (
                torch.empty(1, count, model.length, model.head_size, dtype=dtype, device=self.device)
                for count in (heads, shared)
            )
            named.append(kernel.describe(query.requires_grad_(), key.requires_grad_()))
        return f"{', behind the wide layers '.join(named)}, {heads} heads of {model.head_size} a rank"

    @property
    def kernels(self) -> list[Attention]:
        """One or both."""
        return [self.wide] if self.narrow is None else [self.wide, self.narrow]

    def prepare(self, positions: int, device: torch.device) -> None:
        """Make what passes over ``positions`` positions need; called before each, cheap after the first."""
        self.wide.prepare(positions, device)
        if self.narrow is not None:
            self.narrow.prepare(self.kind.predictions(positions), device)

    def is_wide(self, layer: int) -> bool:
        """Whether layer ``layer``, of the whole model, reads all positions; else those that predict."""
        return layer < self.wide_layers

    def of(self, layer: int) -> AttentionFunction:
        """The attention of layer ``layer``, of the whole model."""
        if self.narrow is not None and not self.is_wide(layer):
            return self.narrow.everywhere
        return self.wide.for_predictions if layer == self.wide_layers - 1 else self.wide.everywhere
