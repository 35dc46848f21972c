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
    small mask hides the rest. About L^2 + 2 L * chunk pairs are computed, of the dense mask's 4 L^2.
    """

    def __init__(self, block: int):
        super().__init__("split", block)
        self.chunk = block * max(1, SPLIT_QUERIES // block)
        self.masks: dict[bool, Tensor] = {}

    def prepare(self, positions: int, device: torch.device) -> None:  # noqa: ARG002 - chunks are of one size
        if self.chunk == self.block or (self.masks and self.masks[True].device == device):
            return
        # Within a chunk: (noisy query, clean key before it or noisy key) and (clean query, clean key).
        index = torch.arange(2 * self.chunk, device=device)
        mask = visible(index[:, None], index[None, :], self.chunk, self.block)
        noisy, clean = mask[: self.chunk], mask[self.chunk :, self.chunk :]
        self.masks = {True: torch.cat((noisy[:, self.chunk :], noisy[:, : self.chunk]), dim=1), False: clean}

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        length = key.shape[2] // 2
        halves = (True,) if query.shape[2] == length else (True, False)
        return torch.cat(
            [
                self._chunk(query, key, value, noisy, begin, min(begin + self.chunk, length), length)
                for noisy in halves
                for begin in range(0, length, self.chunk)
            ],
            dim=2,
        )

    def _chunk(
        self, query: Tensor, key: Tensor, value: Tensor, noisy: bool, begin: int, end: int, length: int
    ) -> Tensor:
        """Attention of the noisy or clean queries from ``begin`` to ``end`` of the sample."""
        first = 0 if noisy else length
        one_block = end - begin == self.block
        # A chunk of one noisy block sees no clean token of its own place.
        clean_end = begin if noisy and one_block else end
        pieces = [slice(length, length + clean_end)] + [slice(begin, end)] * noisy
        keys, values = (_joined(states, pieces) for states in (key, value))
        mask = None if one_block else self._mask(noisy, begin, end - begin)
        return F.scaled_dot_product_attention(query[:, :, first + begin : first + end], keys, values, attn_mask=mask)

    def _mask(self, noisy: bool, prefix: int, rows: int) -> Tensor:
        """bool [rows, keys]: the chunk's mask after a clean prefix that all see; the last chunk may be shorter."""
        mask = self.masks[noisy]
        own = torch.cat([mask[:rows, start : start + rows] for start in range(0, mask.shape[1], self.chunk)], dim=1)
        return F.pad(own, (prefix, 0), value=True)


def _joined(states: Tensor, pieces: list[slice]) -> Tensor:
    """The pieces of ``states`` along the sequence; a single one is not copied."""
    parts = [states[:, :, piece] for piece in pieces]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


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
        from torch.nn.attention.flex_attention import create_block_mask

        if self.kind.name == "bidirectional" or (positions, positions, device) in self.block_masks:
            return
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
