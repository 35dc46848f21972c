"""Which documents of a validation split stand in a train split, and their exclusion from evaluation.

A validation document is contaminated if

- its normal form (see :mod:`card_scale.corpus.normalized_text`) equals that of a train document: a *copy*, or
- at least ``threshold`` of its token n-grams, repeated ones as often as they occur, are found anywhere in train.

What is excluded is always the validation document. Were train documents dropped instead, the unique tokens that a run
may use, their order and so the run itself would depend on the choice of the validation set. Train is compared whole, so
that every subset of it (``data.unique_tokens``) is measured on the same validation documents.

Memory follows the validation split: its n-grams are hashed into a sorted array, and train is read past it once.
"""

import dataclasses
import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np

from card_scale.corpus.hash_set import HashSet
from card_scale.corpus.ngrams import document_ngrams
from card_scale.corpus.normalized_text import NormalizedText
from card_scale.corpus.processes import process_map
from card_scale.corpus.progress import Progress
from card_scale.data.documents import ShardDocuments, shards_of
from card_scale.data.manifest import Decontamination, FileRecord, Manifest, TrainSplit, check_hash, load_index
from card_scale.data.tokenizer import Tokenizer
from card_scale.errors import DataError
from card_scale.files import write_atomically

_SHOWN_SHARES = (0.1, 0.2, 0.5, 0.8)


@dataclass(frozen=True)
class DecontaminationSettings:
    """The rule; see the module."""

    ngram: int = 13
    threshold: float = 0.5


class Overlap(NamedTuple):
    """What of each validation document, in the order of the index, is found in train."""

    ngrams: np.ndarray  # int64 [D], repeated ones as often as they occur; 0 in documents shorter than an n-gram
    shared: np.ndarray  # int64 [D], of these, found in train
    copies: np.ndarray  # bool [D], the normal form equals that of a train document

    def contaminated(self, threshold: float) -> np.ndarray:
        """Which documents the rule excludes: bool [D]."""
        return self.copies | ((self.ngrams > 0) & (self.shared >= threshold * self.ngrams))


def decontaminate(
    directory: Path,
    against: Sequence[Path],
    settings: DecontaminationSettings,
    workers: int,
    progress: bool = False,
) -> Decontamination:
    """Exclude the contaminated documents of a dataset's validation split from every stream opened from now on.

    The result replaces that of an earlier call; where an earlier call did the same, nothing is read or written. No
    shard or index is changed: a file of document numbers and the manifest that lists it are written, the manifest last.

    Args:
        directory: dataset whose validation split is checked.
        against: datasets whose train splits it is compared with; usually ``directory`` itself.
        settings: the rule.
        workers: processes; has no influence on the result.
        progress: show on stderr how far it is.

    Returns:
        The record that the manifest holds now.

    Raises:
        DataError: missing or damaged files; datasets with different tokenizers; a split without documents; or a
            validation split of which nothing would be left, in which case nothing is written.
    """
    manifest = Manifest.load(directory)
    trains = [_train_split(path, directory, manifest) for path in against]
    record = manifest.decontamination
    asked = (settings.ngram, settings.threshold, tuple(trains))
    if record is not None and (record.ngram, record.threshold, record.against) == asked:
        return record
    overlap = measure_overlap(directory, against, settings.ngram, workers, progress)
    contaminated = overlap.contaminated(settings.threshold)
    if contaminated.all():
        raise DataError(
            f"{directory}: all {len(contaminated)} validation documents are contaminated ({int(overlap.copies.sum())} "
            f"copies, the others share {settings.threshold:g} of their {settings.ngram}-grams with train); nothing was "
            "written; hold out other documents"
        )
    tokens = load_index(directory, manifest.splits["validation"])["tokens"]
    excluded = _write_excluded(directory, np.flatnonzero(contaminated).astype(np.int64))
    record = _record(settings, trains, overlap, tokens, excluded)
    dataclasses.replace(manifest, decontamination=record).save(directory)
    old = manifest.decontamination
    if old is not None and old.excluded.name != record.excluded.name:
        (directory / old.excluded.name).unlink(missing_ok=True)
    return record


def _record(
    settings: DecontaminationSettings,
    trains: Sequence[TrainSplit],
    overlap: Overlap,
    tokens: np.ndarray,
    excluded: FileRecord,
) -> Decontamination:
    """Return what the manifest says of a comparison; ``tokens`` int64 [D] are the documents' lengths."""
    contaminated = overlap.contaminated(settings.threshold)
    share = overlap.shared[overlap.ngrams > 0] / overlap.ngrams[overlap.ngrams > 0]
    by_share = {f"{limit:g}": int((share >= limit).sum()) for limit in _SHOWN_SHARES}
    return Decontamination(
        ngram=settings.ngram,
        threshold=settings.threshold,
        against=tuple(trains),
        documents=len(share),
        ngrams=int(overlap.ngrams.sum()),
        shared_ngrams=int(overlap.shared.sum()),
        copies=int(overlap.copies.sum()),
        documents_by_share={"any": int((share > 0).sum())} | by_share,
        excluded_documents=int(contaminated.sum()),
        excluded_tokens=int(tokens[contaminated].sum()),
        excluded=excluded,
    )


def _write_excluded(directory: Path, excluded: np.ndarray) -> FileRecord:
    """Write the list under a name of its content: the present manifest's own stays there until the next is written."""
    content = io.BytesIO()
    np.save(content, excluded)
    digest = sha256(content.getvalue()).hexdigest()
    name = f"excluded-validation-{digest[:12]}.npy"
    write_atomically(directory / name, content.getvalue())
    return FileRecord(name, len(content.getvalue()), digest)


def _train_split(path: Path, directory: Path, manifest: Manifest) -> TrainSplit:
    other = Manifest.load(path)
    if other.tokenizer.sha256 != manifest.tokenizer.sha256:
        raise DataError(
            f"{path} was made with another tokenizer ({other.tokenizer.sha256[:12]}) than {directory} "
            f"({manifest.tokenizer.sha256[:12]}); their n-grams cannot be compared"
        )
    split = other.splits["train"]
    if not split.documents:
        raise DataError(f"{path}: the train split has no documents to compare with")
    return TrainSplit(split.digest, split.documents, split.tokens)


def measure_overlap(
    directory: Path, against: Sequence[Path], ngram: int, workers: int, progress: bool = False
) -> Overlap:
    """Find the n-grams and normal forms of a dataset's validation documents in train splits; nothing is written.

    Args:
        directory: dataset whose validation split is checked.
        against: datasets whose train splits it is compared with; their tokenizer must be the same.
        ngram: tokens of an n-gram, at least 1.
        workers: processes; has no influence on the result.
        progress: show on stderr how far it is.

    Raises:
        DataError: missing or damaged files, or no validation documents.
    """
    manifest = Manifest.load(directory)
    check_hash(directory, manifest.tokenizer)
    text = NormalizedText(Tokenizer.load(directory / manifest.tokenizer.name))
    count = manifest.splits["validation"].documents
    if not count:
        raise DataError(f"{directory}: the validation split has no documents to check")
    hashes, places, fingerprints, digests = _validation_hashes(
        shards_of(directory, manifest, "validation"), text, ngram
    )
    values, inverse = np.unique(hashes, return_inverse=True)
    jobs = [job for path in against for job in shards_of(path, Manifest.load(path), "train")]
    found = np.zeros(len(values), dtype=bool)
    copied: set[int] = set()
    with tempfile.TemporaryDirectory(prefix="decontamination-") as work:
        HashSet.of(values).save(Path(work, "ngrams"))
        HashSet.of(np.unique(fingerprints)).save(Path(work, "fingerprints"))
        search = partial(_search_shard, Path(work), text, ngram)
        size = sum(job.shard.bytes for job in jobs)
        with (
            process_map(min(workers, len(jobs))) as apply,
            Progress("decontaminate", size, progress) as bar,
        ):
            for job, (seen, equal) in zip(jobs, apply(search, jobs), strict=True):
                found[seen] = True
                copied |= equal
                bar.update(job.shard.bytes)
    ngrams = np.bincount(places, minlength=count)
    shared = np.bincount(places[found[inverse]], minlength=count)
    return Overlap(ngrams, shared, np.array([digest in copied for digest in digests]))


def _validation_hashes(
    shards: Sequence[ShardDocuments], text: NormalizedText, ngram: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """n-gram hashes uint64 [G], their documents int64 [G], fingerprints uint64 [D], digests [D]."""
    hashes, places, fingerprints, digests = [], [], [], []
    for documents in (batch for shard in shards for batch in shard.batches()):
        found, place = document_ngrams(documents, ngram)
        hashes.append(found)
        places.append(documents.numbers[place])
        fingerprints.append(text.fingerprints(documents))
        digests += [text.digest(part) for part in np.split(documents.tokens, documents.ends[:-1])]
    return np.concatenate(hashes), np.concatenate(places), np.concatenate(fingerprints), digests


def _search_shard(work: Path, text: NormalizedText, ngram: int, shard: ShardDocuments) -> tuple[np.ndarray, set[int]]:
    """Which validation n-grams (places among the sorted ones) and normal forms (digests) a train shard has."""
    ngrams, fingerprints = HashSet.open(work / "ngrams"), HashSet.open(work / "fingerprints")
    seen = np.zeros(len(ngrams.values), dtype=bool)
    digests = set()
    for documents in shard.batches():
        seen[ngrams.find(document_ngrams(documents, ngram)[0])[1]] = True
        for place in fingerprints.find(text.fingerprints(documents))[0].tolist():
            begin = documents.ends[place - 1] if place else 0
            digests.add(text.digest(documents.tokens[begin : documents.ends[place]]))
    return np.flatnonzero(seen), digests
