"""The packed token stream of a dataset: documents in a fixed order, read at random from shards."""

import functools
from pathlib import Path

import numpy as np

from card_scale.data.documents import check_document
from card_scale.data.manifest import (
    SPLITS,
    Manifest,
    check_hash,
    check_sizes,
    load_excluded,
    load_index,
)
from card_scale.data.order import document_order
from card_scale.data.shard_file import ShardFile
from card_scale.errors import ConfigurationError, DataError

# Each keeps a file descriptor; a large dataset has more shards than a process may have open files.
_OPEN_SHARDS = 256


class PackedStream:
    """Samples of ``length + 1`` tokens, one every ``length`` tokens, cut from the concatenated documents.

    The train stream's document order is a function of the seed, the validation stream's that of the index, whatever
    the seed, without the documents that decontamination excluded. Every file is checked against the manifest when the
    stream is opened, shards by existence and size, the index and the tokenizer by hash; each document's checksum is
    compared when it is first read, so that damage inside a shard cannot be trained on either.

    Attributes:
        manifest: of the dataset directory.
        length: tokens from one sample to the next.
        token_count: of the stream, after ``unique_tokens``.
        sample_count: samples in an epoch, (token_count - 1) // length.
        vocabulary_size: of the tokenizer, unpadded.
    """

    def __init__(self, directory: str | Path, split: str, seed: int, length: int, unique_tokens: int | None = None):
        """Open one split.

        Args:
            directory: dataset directory.
            split: "train" or "validation".
            seed: decides the document order of the train split.
            length: tokens from one sample to the next, at least 1.
            unique_tokens: keep only the stream's first so many tokens, so that a smaller number gives a prefix.

        Raises:
            DataError: a missing, truncated or foreign file, naming it with what was found and expected; or a stream
                shorter than one sample.
            ConfigurationError: ``unique_tokens`` beyond the corpus, naming its size.
        """
        if split not in SPLITS or length < 1:
            raise ValueError(f"split {split!r} must be one of {SPLITS} and length {length} at least 1")
        self._directory = Path(directory)
        self.manifest = Manifest.load(directory)
        check_sizes(self._directory, self.manifest)
        check_hash(self._directory, self.manifest.tokenizer)
        self._split = self.manifest.splits[split]
        self._dtype = np.dtype(self.manifest.dtype).newbyteorder("<")
        self.length = length
        self.vocabulary_size = self.manifest.vocabulary_size

        index = load_index(self._directory, self._split)
        excluded = load_excluded(self._directory, self.manifest, split)
        index = index[document_order(seed, len(index))] if split == "train" else np.delete(index, excluded)
        without = f" outside its {len(excluded)} contaminated documents" if len(excluded) else ""
        self.token_count = self._count_tokens(split, int(index["tokens"].sum()), without, unique_tokens)
        self.sample_count = (self.token_count - 1) // length
        ends = np.cumsum(index["tokens"].astype(np.int64))
        documents = int(np.searchsorted(ends, self.token_count)) + 1  # only the documents that the subset reaches
        self._index = index[:documents].copy()
        self._ends = ends[:documents].copy()
        self._intact = np.zeros(documents, dtype=bool)
        self._shard = functools.lru_cache(maxsize=_OPEN_SHARDS)(self._open_shard)

    def _count_tokens(self, split: str, available: int, without: str, unique_tokens: int | None) -> int:
        if unique_tokens is not None and unique_tokens > available:
            raise ConfigurationError(
                f"data.unique_tokens is {unique_tokens}, but the {split} split of {self._directory} has "
                f"{available} tokens{without}"
            )
        count = available if unique_tokens is None else unique_tokens
        if count <= self.length:
            kept = "" if unique_tokens is None else f" after data.unique_tokens = {unique_tokens}"
            raise DataError(
                f"{self._directory}: the {split} split has {count} tokens{without}{kept}, one sample of model.length = "
                f"{self.length} needs {self.length + 1}"
            )
        return count

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer model, whose hash was checked."""
        return self._directory / self.manifest.tokenizer.name

    def samples(self, sample_ids: np.ndarray) -> np.ndarray:
        """Read samples; sample k is ``stream[k * length : k * length + length + 1]``.

        Args:
            sample_ids: int64 [B], each in [0, sample_count).

        Returns:
            int64 [B, length + 1].

        Raises:
            IndexError: a sample id outside the epoch.
            DataError: a shard changed since the stream was opened, or its content is not what was built.
        """
        return self._read_all(sample_ids, None)

    def readable_samples(self, sample_ids: np.ndarray) -> tuple[np.ndarray, dict[int, DataError]]:
        """Read samples as :meth:`samples`, and go on after damage.

        Returns:
            (int64 [B, length + 1], what is wrong by row); rows with which something is wrong are zero.
        """
        problems: dict[int, DataError] = {}
        return self._read_all(sample_ids, problems), problems

    def _read_all(self, sample_ids: np.ndarray, problems: dict[int, DataError] | None) -> np.ndarray:
        """Read samples; what is wrong with one is raised at once, or noted where ``problems`` are given."""
        sample_ids = np.asarray(sample_ids, dtype=np.int64)
        if len(sample_ids) and not 0 <= sample_ids.min() <= sample_ids.max() < self.sample_count:
            raise IndexError(f"sample ids {sample_ids} outside [0, {self.sample_count})")
        out = np.empty((len(sample_ids), self.length + 1), dtype=np.int64)
        starts = sample_ids * self.length
        first_documents = np.searchsorted(self._ends, starts, side="right")
        for number, (start, document) in enumerate(zip(starts.tolist(), first_documents.tolist(), strict=True)):
            try:
                self._read(out[number], start, document)
            except DataError as error:
                if problems is None:
                    raise
                out[number] = 0
                problems[number] = error
        return out

    def _read(self, row: np.ndarray, start: int, document: int) -> None:
        """Fill a row with the tokens from stream position ``start``, which lies in ``document``."""
        filled = 0
        while filled < len(row):
            tokens = self._document(document)
            skip = start + filled - (int(self._ends[document]) - len(tokens))
            part = tokens[skip : skip + len(row) - filled]
            row[filled : filled + len(part)] = part
            filled += len(part)
            document += 1

    def _document(self, document: int) -> np.ndarray:
        row = self._index[document]
        shard = self._shard(int(row["shard"]))
        data = shard.document(row, self._dtype.itemsize)
        if not self._intact[document]:
            check_document(data, row, shard.path)
            self._intact[document] = True
        return data.view(self._dtype)

    def _open_shard(self, number: int) -> ShardFile:
        return ShardFile(self._directory, self._split.shards[number])
