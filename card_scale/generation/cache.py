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
        self.keys = [like.new_zeros(rows, kv_heads, capacity, head_size) for _ in range(layers)]
        self.values = [like.new_zeros(rows, kv_heads, capacity, head_size) for _ in range(layers)]
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
    """Where one pass writes, and how much of the buffers it reads. The same for all layers."""

    def __init__(self, cache: KeyValueCache, inputs: int, device: torch.device):
        """For a pass of ``inputs`` positions a sequence, behind the committed ones."""
        self.cache = cache
        self.stop = max(cache.lengths) + inputs
        if self.stop > cache.capacity:
            raise ValueError(f"a pass up to position {self.stop} does not fit into a cache of {cache.capacity}")
        self.start = cache.lengths[0] if len(set(cache.lengths)) == 1 else None
        if self.start is None:
            lengths = torch.tensor(cache.lengths, device=device)
            self.slots = lengths[:, None] + torch.arange(inputs, device=device)
            self.rows = torch.arange(len(cache.lengths), device=device)[:, None]

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write [B, kv heads, inputs, head size] of a layer; return views of all that the pass may look at."""
        for buffer, new in ((self.cache.keys[layer], keys), (self.cache.values[layer], values)):
            if self.start is None:
                buffer[self.rows, :, self.slots] = new.transpose(1, 2)
            else:
                buffer[:, :, self.start : self.stop] = new
        return self.cache.keys[layer][:, :, : self.stop], self.cache.values[layer][:, :, : self.stop]
