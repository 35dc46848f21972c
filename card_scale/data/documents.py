"""Whole documents of a dataset's shards: checked by their checksum, read in the order of the index."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from card_scale.data.manifest import Manifest, check_sizes, load_index
from card_scale.data.shard_file import ShardFile
from card_scale.data.shards import ShardRecord
from card_scale.errors import DataError

_BATCH_TOKENS = 1 << 18


class Documents(NamedTuple):
    """Documents back to back, each without its EOS."""

    numbers: np.ndarray  # int64 [D], in the index of their split
    tokens: np.ndarray  # unsigned [T]
    ends: np.ndarray  # int64 [D], of each document in ``tokens``


@dataclass(frozen=True)
class ShardDocuments:
    """Documents of one shard: a unit of work that a process can be given."""

    directory: Path
    shard: ShardRecord
    dtype: str
    rows: np.ndarray  # INDEX_DTYPE [D], of this shard
    numbers: np.ndarray  # int64 [D], of these rows in the index of the split

    def batches(self) -> Iterator[Documents]:
        """Read the documents, a few hundred thousand tokens at a time.

        Raises:
            DataError: a shard that is missing, of another size, or damaged.
        """
        file = ShardFile(self.directory, self.shard)
        ends = np.cumsum(self.rows["tokens"].astype(np.int64))
        begin = 0
        while begin < len(self.rows):
            limit = (ends[begin - 1] if begin else 0) + _BATCH_TOKENS
            end = max(begin + 1, int(np.searchsorted(ends, limit, side="right")))
            tokens = [self._tokens(file, row) for row in self.rows[begin:end]]
            yield Documents(self.numbers[begin:end], np.concatenate(tokens), np.cumsum([len(part) for part in tokens]))
            begin = end

    def _tokens(self, file: ShardFile, row: np.ndarray) -> np.ndarray:
        data = file.document(row, np.dtype(self.dtype).itemsize)
        check_document(data, row, file.path)
        return data.view(np.dtype(self.dtype).newbyteorder("<"))[:-1]


def check_document(data: np.ndarray, row: np.ndarray, path: Path) -> None:
    """Compare the checksum of a document's bytes with its row of the index.

    Raises:
        DataError: naming the shard, the place and both checksums.
    """
    found = zlib.crc32(data.data)
    if found != row["crc32"]:
        raise DataError(
            f"{path}: damaged at byte {int(row['offset'])} (checksum {found:08x}, expected {int(row['crc32']):08x}); "
            "tools/data.py verify shows all damage"
        )


def shards_of(
    directory: Path, manifest: Manifest, split: str, numbers: np.ndarray | None = None
) -> list[ShardDocuments]:
    """A split's documents by shard, in the order of the index.

    Args:
        directory: dataset directory.
        manifest: its manifest.
        split: "train" or "validation".
        numbers: only these documents, int64, ascending; all by default.

    Returns:
        One entry per shard that holds any of them.

    Raises:
        DataError: a missing, truncated or foreign file.
    """
    check_sizes(directory, manifest)
    index = load_index(directory, manifest.splits[split])
    chosen = np.arange(len(index)) if numbers is None else numbers
    rows = index[chosen]
    bounds = np.searchsorted(rows["shard"], np.arange(len(manifest.splits[split].shards) + 1))
    return [
        ShardDocuments(directory, shard, manifest.dtype, rows[begin:end], chosen[begin:end])
        for shard, begin, end in zip(manifest.splits[split].shards, bounds[:-1], bounds[1:], strict=True)
        if end > begin
    ]
