"""How much of a split nearly repeats other documents: MinHash signatures in a locality-sensitive index.

The similarity of two documents is the Jaccard index of their sets of token 5-grams. It is estimated from
one-permutation MinHash signatures (Li, Owen and Zhang 2012): each n-gram's hash falls into one of 126 bins, a bin keeps
its least, and the share of equal bins among those that are not empty in both documents is an unbiased estimate, with a
standard error of 0.036 at a similarity of 0.8 (less where a document has few n-grams in as many bins to itself). A pair
is looked at if one of 21 bands of 6 bins agrees, which at 0.8 it does with a probability of 0.998.

The rate is the share of documents that have a near duplicate, a similarity estimated at 0.8 or more: within train
among the documents before them, in the order of the index; in validation, of the documents that decontamination left,
among all of train. Train is always read whole; only the documents that are asked about are sampled, so a sample's rate
has a binomial error and no bias.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from card_scale.corpus.ngrams import document_ngrams, mix
from card_scale.corpus.processes import process_map
from card_scale.corpus.progress import Progress
from card_scale.data.documents import Documents, ShardDocuments, shards_of
from card_scale.data.manifest import Manifest, load_excluded, load_index
from card_scale.data.order import document_order
from card_scale.errors import DataError

NGRAM = 5
SIMILARITY = 0.8
_BANDS, _BINS_OF_BAND = 21, 6
BINS = _BANDS * _BINS_OF_BAND
_EMPTY = np.uint32(2**32 - 1)
_NEVER = np.iinfo(np.int64).max
_PAIRS = 1 << 16  # compared at a time


@dataclass(frozen=True)
class NearDuplicates:
    """The near-duplicate rate of a split."""

    documents: int  # of the split, without those that decontamination excluded
    sampled: int  # asked about; all but where there are more than the limit
    compared: int  # of these, those of at least 5 tokens, which have an n-gram
    duplicates: int  # of these, those that have a near duplicate
    share: float  # duplicates / compared
    standard_error: float  # of ``share`` as an estimate for the whole split; 0 where all documents were asked about
    token_share: float  # tokens of the duplicates / tokens of the compared


def signatures(documents: Documents) -> np.ndarray:
    """One-permutation MinHash signatures.

    Returns:
        uint32 [D, BINS], the least hash in each bin or 2**32 - 1 where it is empty; all empty for documents of fewer
        than 5 tokens.
    """
    hashes, places = document_ngrams(documents, NGRAM)
    bins = ((hashes >> np.uint64(32)) * np.uint64(BINS) >> np.uint64(32)).astype(np.int64)
    least = np.full(len(documents.ends) * BINS, _EMPTY)
    np.minimum.at(least, places * BINS + bins, hashes.astype(np.uint32))  # the lower half, which did not choose the bin
    return least.reshape(-1, BINS)


def similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The estimated Jaccard index of each pair of signatures: uint32 [P, BINS] twice to float64 [P]; 0 of none."""
    filled = (first != _EMPTY) | (second != _EMPTY)
    equal = (first == second) & filled
    return equal.sum(axis=1) / np.maximum(1, filled.sum(axis=1))


def _band_keys(signature: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A hash of each band that is not empty, uint64 [K], and the row of ``signature`` it belongs to, int64 [K]."""
    bands = signature.reshape(-1, _BANDS, _BINS_OF_BAND)
    keys = np.broadcast_to(np.arange(_BANDS, dtype=np.uint64), bands.shape[:2])
    for place in range(_BINS_OF_BAND):
        keys = mix(keys ^ bands[:, :, place])
    rows, columns = np.nonzero((bands != _EMPTY).any(axis=2))
    return keys[rows, columns], rows


def near_duplicates(
    directory: Path,
    split: str,
    against: Path | None,
    sample: int,
    workers: int,
    progress: bool = False,
) -> NearDuplicates:
    """Measure the near-duplicate rate of a split's documents against a train split.

    Args:
        directory: dataset whose documents are asked about.
        split: "train" or "validation".
        against: dataset with whose train split they are compared; None for ``directory`` with its own: train documents
            with those before them, validation documents with all.
        sample: ask about at most so many documents, chosen at random and always the same.
        workers: processes; has no influence on the result.
        progress: show on stderr how far it is.

    Raises:
        DataError: missing or damaged files, different tokenizers, or a split without documents.
    """
    manifest = Manifest.load(directory)
    other = against or directory
    trains = Manifest.load(other)
    count = manifest.splits[split].documents
    if not count or not trains.splits["train"].documents:
        raise DataError(f"{directory} ({split}) or {other} (train) has no documents to compare")
    if trains.tokenizer.sha256 != manifest.tokenizer.sha256:
        raise DataError(f"{directory} and {other} were made with different tokenizers; they cannot be compared")
    order = document_order(0, count)
    used = order[~np.isin(order, load_excluded(directory, manifest, split))]
    count, numbers = len(used), np.sort(used[:sample])
    queries = np.concatenate(
        [signatures(batch) for shard in shards_of(directory, manifest, split, numbers) for batch in shard.batches()]
    )
    filled = (queries != _EMPTY).any(axis=1)
    tokens = load_index(directory, manifest.splits[split])["tokens"][numbers][filled].astype(np.int64)
    numbers, queries = numbers[filled], queries[filled]
    earliest = _earliest(queries, shards_of(other, trains, "train"), workers, progress)
    duplicate = earliest < (numbers if split == "train" and against is None else _NEVER)
    compared, sampled = len(numbers), min(sample, count)
    share = float(duplicate.mean()) if compared else 0.0
    left_out = (count - sampled) / max(1, count - 1)  # a sample of nearly everything errs less
    return NearDuplicates(
        documents=count,
        sampled=sampled,
        compared=compared,
        duplicates=int(duplicate.sum()),
        share=share,
        standard_error=float(np.sqrt(share * (1 - share) / max(1, compared) * left_out)),
        token_share=float(tokens[duplicate].sum() / max(1, tokens.sum())),
    )


def _earliest(queries: np.ndarray, shards: Sequence[ShardDocuments], workers: int, progress: bool) -> np.ndarray:
    """The number of the first document that nearly equals each query: int64 [Q], ``_NEVER`` where there is none."""
    if not len(queries):
        return np.zeros(0, dtype=np.int64)
    groups, group_of = np.unique(queries, axis=0, return_inverse=True)  # equal signatures need to be compared once
    keys, owners = _band_keys(groups)
    order = np.argsort(keys, kind="stable")
    earliest = np.full(len(groups), _NEVER)
    with tempfile.TemporaryDirectory(prefix="near-duplicates-") as work:
        for name, array in (("groups", groups), ("keys", keys[order]), ("owners", owners[order])):
            np.save(Path(work, name), array)
        size = sum(shard.shard.bytes for shard in shards)
        with (
            process_map(min(workers, len(shards))) as apply,
            Progress("near duplicates", size, progress) as bar,
        ):
            for shard, found in zip(shards, apply(partial(_search_shard, Path(work)), shards), strict=True):
                earliest = np.minimum(earliest, found)
                bar.update(shard.shard.bytes)
    return earliest[group_of.reshape(-1)]


def _search_shard(work: Path, shard: ShardDocuments) -> np.ndarray:
    """The number of the shard's first document that nearly equals each group: int64 [G]."""
    groups, keys, owners = (np.load(work / f"{name}.npy", mmap_mode="r") for name in ("groups", "keys", "owners"))
    earliest = np.full(len(groups), _NEVER)
    for documents in shard.batches():
        signature = signatures(documents)
        _, first = np.unique(signature, axis=0, return_index=True)
        first.sort()
        signature, numbers = signature[first], documents.numbers[first]
        for group, document in _candidates(keys, owners, signature):
            later = numbers[document] < earliest[group]
            group, document = group[later], document[later]
            near = similarity(groups[group], signature[document]) >= SIMILARITY
            np.minimum.at(earliest, group[near], numbers[document[near]])
    return earliest


def _candidates(keys: np.ndarray, owners: np.ndarray, signature: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs (group, document) that agree in a band, int64 [P] each, a bounded number at a time; a pair may recur."""
    document_keys, rows = _band_keys(signature)
    begins = np.searchsorted(keys, document_keys, side="left")
    counts = np.searchsorted(keys, document_keys, side="right") - begins
    ends = np.cumsum(counts)
    for start in range(0, int(ends[-1]) if len(ends) else 0, _PAIRS):
        pairs = np.arange(start, min(start + _PAIRS, int(ends[-1])))
        hit = np.searchsorted(ends, pairs, side="right")
        yield owners[begins[hit] + pairs - (ends[hit] - counts[hit])], rows[hit]
