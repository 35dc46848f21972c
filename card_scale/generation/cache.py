"""The keys and values of what has been read, one static buffer a layer."""

import torch
from torch import Tensor


class KeyValueCache:
    """Keys and values of B sequences in buffers of ``capacity`` positions.

    Of each sequence the first ``lengths[row]`` positions are clean tokens that later passes see. What a pass writes
    behind them counts only once :meth:`commit` says so; the next pass writes over the rest.
    """

    def __init__(self, layers: int, rows: int, kv_heads: int, capacity: int, head_size: int, like: Tensor):
        """``like`` gives type and device."""
        # One position more than are ever read: where the keys go of inputs that only fill up a pass.
        size = (rows, kv_heads, capacity + 1, head_size)
        self.keys = [like.new_zeros(size) for _ in range(layers)]
        self.values = [like.new_zeros(size) for _ in range(layers)]
        self.capacity = capacity
        self.lengths = [0] * rows

    def commit(self, counts: list[int]) -> None:
        """Keep the first ``counts[row]`` positions that the last pass wrote."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]

    def keep(self, rows: list[int]) -> None:
        """Drop all other sequences."""
        index = torch.tensor(rows, device=self.keys[0].device)
        self.keys = [keys.index_select(0, index) for keys in self.keys]
        self.values = [values.index_select(0, index) for values in self.values]
        self.lengths = [self.lengths[row] for row in rows]


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
        self.keys, self.values = cache.keys, cache.values
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
        for buffer, new in ((self.keys[layer], keys), (self.values[layer], values)):
            if self.start is None:
                buffer[self.rows, :, self.slots] = new.transpose(1, 2)
            else:
                buffer[:, :, self.start : self.span] = new
        return self.keys[layer][:, :, : self.span], self.values[layer][:, :, : self.span]
