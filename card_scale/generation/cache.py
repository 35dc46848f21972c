"""The keys and values of what has been read, one static buffer a layer."""

from typing import Protocol

import torch
from torch import Tensor


class SequenceCache(Protocol):
    """What the loop asks of a cache of B sequences."""

    @property
    def lengths(self) -> list[int]:
        """Clean tokens of each sequence that later passes see."""

    def commit(self, counts: list[int]) -> None:
        """Keep the first ``counts[row]`` positions that the last pass wrote."""

    def keep(self, rows: list[int]) -> None:
        """Drop all other sequences, of which some are left."""


class LayerKeys(Protocol):
    """Where the keys of a pass go, and what it looks at."""

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Take [B, kv heads, inputs, head size] of a layer; return all that the pass may look at."""


class KeyValueCache:
    """Keys and values of B sequences in buffers of ``capacity`` positions.

    Of each sequence the first ``lengths[row]`` positions are clean tokens that later passes see. What a pass writes
    behind them counts only once :meth:`commit` says so; the next pass writes over the rest.

    Where the buffers are static, their rows stay as many when sequences are dropped: those behind the last sequence
    only fill up, and do as the first.
    """

    def __init__(
        self,
        layers: range,
        rows: int,
        kv_heads: int,
        capacity: int,
        head_size: int,
        like: Tensor,
        is_static: bool = False,
    ):
        """For ``layers`` of the model; ``like`` gives type and device."""
        # One position more than are ever read: where the keys go of inputs that only fill up a pass.
        size = (rows, kv_heads, capacity + 1, head_size)
        self.first_layer = layers.start
        self.keys = [like.new_zeros(size) for _ in layers]
        self.values = [like.new_zeros(size) for _ in layers]
        self.capacity = capacity
        self.lengths = [0] * rows
        self.is_static = is_static

    def has_sizes(self, rows: int, kv_heads: int, capacity: int, like: Tensor) -> bool:
        """Whether the buffers are of these sizes, and of this type and device."""
        held = self.keys[0]
        sizes = (rows, kv_heads, capacity + 1)
        return held.shape[:3] == sizes and (held.dtype, held.device) == (like.dtype, like.device)

    def clear(self) -> None:
        """Begin anew, in the same buffers."""
        for buffer in (*self.keys, *self.values):
            buffer.zero_()
        self.lengths = [0] * len(self.lengths)

    def commit(self, counts: list[int]) -> None:
        """Keep the first ``counts[row]`` positions that the last pass wrote."""
        counts = self._with_filling(counts)
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]

    def keep(self, rows: list[int]) -> None:
        """Drop all other sequences, of which some are left."""
        rows = self._with_filling(rows)
        index = torch.tensor(rows, device=self.keys[0].device)
        for buffers in (self.keys, self.values):
            for number, buffer in enumerate(buffers):
                kept = buffer.index_select(0, index)
                buffers[number] = buffer.copy_(kept) if self.is_static else kept
        self.lengths = [self.lengths[row] for row in rows]

    def _with_filling(self, of_sequences: list[int]) -> list[int]:
        missing = len(self.lengths) - len(of_sequences) if self.is_static else 0
        return of_sequences + of_sequences[:1] * missing


class CacheWriter:
    """Where one pass writes, and how much of the buffers it reads. The same for all layers.

    Args:
        cache: to write to, behind its committed positions.
        inputs: positions of the pass, those that only fill it up included.
        device: of the cache.
        span: positions to read; None for as many as are written. With a span all shapes of the pass are those of other
            passes of the same span, and ``counts`` says how many of each sequence's inputs are more than filling.
        counts: inputs of each sequence, only with a span.
    """

    def __init__(
        self,
        cache: KeyValueCache,
        inputs: int,
        device: torch.device,
        span: int | None = None,
        counts: list[int] | None = None,
    ):
        self.keys, self.values, self.first_layer = cache.keys, cache.values, cache.first_layer
        written = max(cache.lengths) + (max(counts) if counts else inputs)
        self.span = written if span is None else span
        if max(written, self.span) > cache.capacity:
            raise ValueError(f"a pass up to position {written} does not fit into a cache of {cache.capacity}")
        self.start = cache.lengths[0] if span is None and len(set(cache.lengths)) == 1 else None
        if self.start is None:
            lengths = torch.tensor(cache.lengths, device=device)
            number = torch.arange(inputs, device=device)
            self.slots = lengths[:, None] + number
            if counts is not None:
                self.slots[number >= torch.tensor(counts, device=device)[:, None]] = cache.capacity
            self.rows = torch.arange(len(cache.lengths), device=device)[:, None]

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write [B, kv heads, inputs, head size] of a layer; return views of all that the pass may look at."""
        number = layer - self.first_layer
        for buffer, new in ((self.keys[number], keys), (self.values[number], values)):
            if self.start is None:
                buffer[self.rows, :, self.slots] = new.transpose(1, 2)
            else:
                buffer[:, :, self.start : self.span] = new
        return self.read(layer)

    def read(self, layer: int) -> tuple[Tensor, Tensor]:
        """Views of what of a layer the pass may look at."""
        number = layer - self.first_layer
        return self.keys[number][:, :, : self.span], self.values[number][:, :, : self.span]


def behind_cached(within: Tensor, lengths: list[int], span: int) -> Tensor:
    """What is seen of the pass, bool [B, Q, inputs], behind so many cached positions, all seen → bool [B, Q, span]."""
    queries, inputs = within.shape[1:]
    place = torch.arange(span, device=within.device) - torch.tensor(lengths, device=within.device).unsqueeze(1)
    index = place.clamp(0, inputs - 1).unsqueeze(1).expand(-1, queries, -1)
    here = ((place >= 0) & (place < inputs)).unsqueeze(1)
    return within.gather(2, index) & here | (place < 0).unsqueeze(1)


def filled(values: list[int], length: int) -> list[int]:
    """``values`` with zeros behind them."""
    return values + [0] * (length - len(values))
