"""Core attention: which positions see which, and the kernel that computes it on the device at hand."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from card_scale.errors import ConfigurationError
from card_scale.objectives.base import AttentionKind
from card_scale.objectives.block_diffusion import attention_mask, visible

BACKENDS = {
    "causal": ("sdpa", "flex"),
    "bidirectional": ("sdpa", "flex"),
    "block_diffusion": ("flex", "split", "dense"),
}
"""Backends of each kind of attention: torch's fused attention with a mask that it knows, FlexAttention with a block
mask, fused attention over the parts that block diffusion leaves, and fused attention with the whole mask."""

SPLIT_QUERIES = 128
"""Queries that the split backend takes at a time, unless a block is larger: fewer leave less hidden work, more make
larger products."""


class Attention(ABC):
    """Scaled dot-product attention of one kind; one object serves all layers of a model chunk.

    In block diffusion the sequence holds 2L positions, the noisy half first.
    """

    def __init__(self, backend: str):
        self.backend = backend
        # Bound once: a new object in every pass would make torch.compile start over.
        self.everywhere: AttentionFunction = self._attend_everywhere
        """Attention of all positions."""
        self.for_predictions: AttentionFunction = self._attend_for_predictions
        """Attention of the positions that predict, the first L: all that is needed of the last layer."""

    def prepare(self, positions: int, device: torch.device) -> None:  # noqa: B027 - not every backend has a mask
        """Make what passes over ``positions`` positions need; called before each, cheap after the first."""

    @abstractmethod
    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """All [B, heads, positions, head size]; queries are the first positions, all or half of them."""

    def predictions(self, positions: int) -> int:
        """Number of positions that predict."""
        return positions

    def _attend_everywhere(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (states.permute(1, 2, 0, 3) for states in (query, key, value))
        return self.attend(query, key, value).permute(2, 0, 1, 3).flatten(2)

    def _attend_for_predictions(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self._attend_everywhere(query[: self.predictions(len(query))], key, value)


AttentionFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Query, key, value [positions, B, heads, head size] -> [positions that are asked for, B, heads * head size]."""


class FusedAttention(Attention):
    """Torch's fused kernel without a mask, or with the causal one that it knows."""

    def __init__(self, causal: bool):
        super().__init__("sdpa")
        self.causal = causal

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)


class BlockDiffusionAttention(Attention):
    """What the backends of block diffusion share."""

    def __init__(self, backend: str, block: int):
        super().__init__(backend)
        self.block = block

    def predictions(self, positions: int) -> int:
        return positions // 2


class DenseBlockDiffusion(BlockDiffusionAttention):
    """The literal reading of the definition: fused attention with the mask [2L, 2L]."""

    def __init__(self, block: int):
        super().__init__("dense", block)
        self.mask = torch.empty(0, 0, dtype=torch.bool)

    def prepare(self, positions: int, device: torch.device) -> None:
        if len(self.mask) != positions or self.mask.device != device:
            self.mask = attention_mask(positions // 2, self.block).to(device)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask[: query.shape[2]])


class SplitBlockDiffusion(BlockDiffusionAttention):
    """Exact block diffusion from dense pieces, with a backward pass on every device.

    The queries are taken in chunks of whole blocks. A chunk of either half is attended to the keys that some of its
    queries see, which is the clean sample up to the chunk's end and, for the noisy half, the noisy chunk itself; a
    mask, made once per length, hides the rest. About L^2 + 2 L * chunk pairs are computed, of the dense mask's 4 L^2.
    """

    def __init__(self, block: int):
        super().__init__("split", block)
        self.chunk = block * max(1, SPLIT_QUERIES // block)
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
                if end - begin > self.block:
                    first = 0 if noisy else length
                    queries = index[first + begin : first + end]
                    keys = _joined(index, self._keys(noisy, begin, end, length), dim=0)
                    self.masks[noisy, begin] = visible(queries[:, None], keys[None, :], length, self.block)
        self.prepared_for = (positions, device)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        length = key.shape[2] // 2
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
                    )
                )
        return torch.cat(chunks, dim=2)

    def _keys(self, noisy: bool, begin: int, end: int, length: int) -> list[slice]:
        """The keys that some query of a chunk sees: clean ones, and for the noisy half the chunk's own."""
        if noisy:
            return [slice(length, length + end - self.block), slice(begin, end)]
        return [slice(length, length + end)]


def _joined(states: Tensor, pieces: list[slice], dim: int) -> Tensor:
    """The pieces of ``states`` along a dimension; a single one is not copied."""
    parts = [states.narrow(dim, piece.start, piece.stop - piece.start) for piece in pieces]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


class FlexAttention(Attention):
    """FlexAttention of any kind: a block mask, made once per length, lets it skip what nobody sees.

    It has no backward pass on a CPU (torch 2.13).
    """

    def __init__(self, kind: AttentionKind, compiled: bool):
        super().__init__("flex")
        from torch.nn.attention.flex_attention import flex_attention

        self.kind = kind
        # Not compiled, it computes and masks all scores: right, but only fit for checking.
        self.flex_attention = torch.compile(flex_attention, dynamic=False) if compiled else flex_attention
        self.block_masks: dict[tuple[int, int, torch.device], object] = {}

    def predictions(self, positions: int) -> int:
        return positions // 2 if self.kind.name == "block_diffusion" else positions

    def prepare(self, positions: int, device: torch.device) -> None:
        if self.kind.name == "bidirectional" or (positions, positions, device) in self.block_masks:
            return
        from torch.nn.attention.flex_attention import create_block_mask

        for queries in {positions, self.predictions(positions)}:
            self.block_masks[queries, positions, device] = create_block_mask(
                self._visible(positions), None, None, queries, positions, device=device
            )

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        block_mask = self.block_masks.get((query.shape[2], key.shape[2], query.device))
        return self.flex_attention(query.contiguous(), key.contiguous(), value.contiguous(), block_mask=block_mask)

    def _visible(self, positions: int) -> Callable[..., Tensor]:
        """FlexAttention's mask function: (batch, head, query index, key index) -> whether it may attend."""
        if self.kind.name == "causal":
            return lambda _batch, _head, query, key: key <= query
        length, block = positions // 2, self.kind.block
        return lambda _batch, _head, query, key: visible(query, key, length, block)


def resolve_backend(kind: AttentionKind, backend: str, device_type: str) -> str:
    """The backend of ``kind`` that ``backend`` stands for: itself, or if it is "auto" the best that the device has.

    That is the fused kernels where they know the mask, else FlexAttention on a GPU and the split form on a CPU. Raises
    ConfigurationError for a backend that the kind or the device does not have.
    """
    valid = [name for name in BACKENDS[kind.name] if name != "flex" or device_type != "cpu"]
    if backend == "auto":
        return valid[0]
    if backend not in valid:
        reason = ", where FlexAttention has no backward pass" if (backend, device_type) == ("flex", "cpu") else ""
        raise ConfigurationError(
            f"model.attention_backend is {backend}, but {kind.name.replace('_', ' ')} attention runs on a "
            f"{device_type}{reason}; valid here: auto, {', '.join(valid)}"
        )
    return backend


def create_attention(kind: AttentionKind, backend: str, device: torch.device) -> Attention:
    """The attention of ``kind`` by ``backend``, resolved and refused as by :func:`resolve_backend`."""
    backend = resolve_backend(kind, backend, device.type)
    if backend == "flex":
        return FlexAttention(kind, compiled=True)
    if backend == "sdpa":
        return FusedAttention(causal=kind.name == "causal")
    return DenseBlockDiffusion(kind.block) if backend == "dense" else SplitBlockDiffusion(kind.block)


class CoreAttention(nn.Module):
    """The core-attention slot of Megatron's SelfAttention; its attention mask is here the attention itself."""

    def __init__(self, **megatron_arguments):  # noqa: ARG002 - Megatron passes config, layer number, ...
        super().__init__()

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention: AttentionFunction, **_) -> Tensor:
        """Return ``attention(query, key, value)``."""
        return attention(query, key, value)
