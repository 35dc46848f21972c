"""The manifest of a dataset directory: what exists, how large it is and what it hashes to.

A dataset directory holds ``tokenizer.model`` or ``tokenizer.json``, ``train-UUUUUU-NNN.tar`` and
``validation-UUUUUU-NNN.tar`` shards, ``index-train.npy``, ``index-validation.npy`` and ``manifest.json``, which is
written last: a directory without it is an unfinished build. A decontaminated one also holds
``excluded-validation-HASH.npy``. Only what the manifest lists is ever read. A damaged tar can look like a shorter one
to any reader (it has no checksum of its data), so sizes, counts and hashes stand here.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from card_scale.data.arrays import read_array
from card_scale.data.shards import INDEX_DTYPE, ShardRecord
from card_scale.errors import DataError
from card_scale.files import sha256_file, write_atomically

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
SPLITS = ("train", "validation")
TOKENS_FROM = "tokens_from"
"""Key of a manifest's settings: the tokens were not made here of text, but taken from a dataset of this format."""
_SHOWN_PROBLEMS = 5


def index_name(split: str) -> str:
    """File name of a split's index."""
    return f"index-{split}.npy"


def token_dtype(vocabulary_size: int) -> np.dtype:
    """The smallest stored type that holds every id: little-endian uint16 or uint32."""
    return np.dtype("<u2") if vocabulary_size <= 2**16 else np.dtype("<u4")


@dataclass(frozen=True)
class FileRecord:
    """A file beside the shards."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """One side of the corpus; ``tokens`` includes the EOS that ends each document."""

    documents: int
    tokens: int
    index: FileRecord
    shards: tuple[ShardRecord, ...]

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that identify the documents and their order."""
        return _checksum(asdict(self))[:16]


@dataclass(frozen=True)
class TrainSplit:
    """The train split that a validation split was compared with, named by what it holds and not by where it stands."""

    digest: str  # of the split's record, see ``Split.digest``
    documents: int
    tokens: int


@dataclass(frozen=True)
class Decontamination:
    """Which validation documents are not evaluated, and why; see :mod:`card_scale.corpus.decontamination`."""

    ngram: int
    threshold: float
    against: tuple[TrainSplit, ...]
    documents: int  # of the validation split that have an n-gram
    ngrams: int  # of the validation split, repeated ones as often as they occur
    shared_ngrams: int  # of these, found in train
    copies: int  # documents whose normal form equals that of a train document
    documents_by_share: Mapping[str, int]  # documents of which at least that share of n-grams is found in train
    excluded_documents: int
    excluded_tokens: int
    excluded: FileRecord  # int64 [excluded_documents]: their numbers in the index, ascending


@dataclass(frozen=True)
class Manifest:
    """Everything that is known about a dataset; see the module for the files it speaks of."""

    vocabulary_size: int
    special_ids: Mapping[str, int]
    tokenizer: FileRecord
    dtype: str  # numpy name of the stored tokens, "uint16" or "uint32"
    splits: Mapping[str, Split]
    counts: Mapping[str, int]  # documents, text_bytes, empty_dropped, invalid_skipped
    sources: tuple[Mapping[str, Any], ...]  # name, files, bytes and fingerprint of each input
    settings: Mapping[str, Any]  # how it was made
    decontamination: Decontamination | None = None  # of the validation split, None where it was never done
    rewrites: tuple[str, ...] = ()  # in which texts the tokens are not those of the text itself, see ``Tokenizer``
    format: int = field(default=FORMAT_VERSION)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that identify the data: equal for equal shards, indexes, tokenizer and exclusions."""
        identity = {
            "vocabulary_size": self.vocabulary_size,
            "special_ids": dict(self.special_ids),
            "tokenizer": self.tokenizer.sha256,
            "splits": {name: asdict(split) for name, split in self.splits.items()},
        }
        if self.decontamination is not None and self.decontamination.excluded_documents:
            identity["excluded"] = self.decontamination.excluded.sha256
        return _checksum(identity)[:16]

    def held_out_from(self, train: "Manifest") -> bool:
        """Whether this dataset's validation split was decontaminated against the train split of ``train``."""
        compared = self.decontamination.against if self.decontamination else ()
        return train.splits["train"].digest in {split.digest for split in compared}

    def save(self, directory: Path) -> None:
        """Write ``manifest.json`` durably and atomically, with a checksum of its own content."""
        content = asdict(self)
        if self.decontamination is None:
            del content["decontamination"]
        if not self.rewrites:
            del content["rewrites"]
        content["checksum"] = _checksum(content)
        write_atomically(directory / MANIFEST_NAME, json.dumps(content, indent=1).encode())

    @classmethod
    def load(cls, directory: str | Path) -> "Manifest":
        """Read a dataset directory's manifest.

        Raises:
            DataError: missing, not JSON, changed since it was written, or of another format version; naming the file.
        """
        path = Path(directory) / MANIFEST_NAME
        try:
            content = json.loads(path.read_bytes())
        except FileNotFoundError as error:
            raise DataError(f"{path}: no such file; a dataset is made with tools/data.py build") from error
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise DataError(f"{path}: not valid JSON ({error})") from error
        if not isinstance(content, dict):
            raise DataError(f"{path}: holds no JSON object")
        if content.get("format") != FORMAT_VERSION:
            raise DataError(f"{path}: format {content.get('format')!r}, this version reads {FORMAT_VERSION}")
        checksum = content.pop("checksum", None)
        if checksum != _checksum(content):
            raise DataError(f"{path}: damaged or edited: checksum {checksum}, its content gives {_checksum(content)}")
        return cls(
            **content
            | {
                "tokenizer": FileRecord(**content["tokenizer"]),
                "splits": {name: _split(value) for name, value in content["splits"].items()},
                "sources": tuple(content["sources"]),
                "decontamination": _decontamination(content.get("decontamination")),
                "rewrites": tuple(content.get("rewrites", ())),
            }
        )


def _split(value: dict) -> Split:
    shards = tuple(ShardRecord(**shard) for shard in value["shards"])
    return Split(value["documents"], value["tokens"], FileRecord(**value["index"]), shards)


def _decontamination(value: dict | None) -> Decontamination | None:
    if value is None:
        return None
    against = tuple(TrainSplit(**split) for split in value["against"])
    return Decontamination(**value | {"against": against, "excluded": FileRecord(**value["excluded"])})


def _checksum(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_sizes(directory: Path, manifest: Manifest) -> None:
    """Check that every file of the manifest exists with its size, all shards at the cost of one ``stat`` each.

    Raises:
        DataError: naming the files, sizes found and expected.
    """
    files: list[FileRecord | ShardRecord] = [manifest.tokenizer]
    if manifest.decontamination is not None:
        files.append(manifest.decontamination.excluded)
    for split in manifest.splits.values():
        files += [split.index, *split.shards]
    problems = [problem for file in files if (problem := size_problem(directory, file))]
    if problems:
        shown = "; ".join(problems[:_SHOWN_PROBLEMS])
        more = f"; and {len(problems) - _SHOWN_PROBLEMS} more files" if len(problems) > _SHOWN_PROBLEMS else ""
        raise DataError(f"{shown}{more}; restore the files or build the dataset again")


def size_problem(directory: Path, file: FileRecord | ShardRecord) -> str | None:
    """What is wrong with the existence or size of a file, or None."""
    path = directory / file.name
    try:
        found = path.stat().st_size
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror}), expected {file.bytes} bytes"
    return None if found == file.bytes else f"{path}: {found} bytes, expected {file.bytes}"


def check_hash(directory: Path, file: FileRecord) -> None:
    """Check a file's SHA-256.

    Raises:
        DataError: naming the file, the hash found and expected.
    """
    found = sha256_file(directory / file.name)
    if found != file.sha256:
        raise DataError(f"{directory / file.name}: SHA-256 {found}, the manifest says {file.sha256}")


def _checked_array(directory: Path, file: FileRecord) -> np.ndarray:
    """The array of an ``.npy`` file. Raises DataError where it is not the manifest's, or none."""
    check_hash(directory, file)
    path = directory / file.name
    try:
        with path.open("rb") as opened:
            return read_array(opened)
    except ValueError as error:
        raise DataError(f"{path}: not a .npy array ({error})") from None


def load_index(directory: Path, split: Split) -> np.ndarray:
    """A split's index, checked by its hash: ``INDEX_DTYPE`` [documents].

    Raises:
        DataError: the file is not the manifest's.
    """
    index = _checked_array(directory, split.index)
    is_index = index.dtype == INDEX_DTYPE and index.shape == (split.documents,)
    if not is_index or int(index["tokens"].sum()) != split.tokens:
        raise DataError(
            f"{directory / split.index.name}: {index.dtype} {index.shape}; the manifest says {split.documents} "
            f"documents and {split.tokens} tokens"
        )
    return index


def load_excluded(directory: Path, manifest: Manifest, split: str) -> np.ndarray:
    """The documents of a split that are left out of its stream, checked by the file's hash.

    Returns:
        int64 [E], their numbers in the index, ascending; empty for the train split and without decontamination.

    Raises:
        DataError: the file is not the manifest's, or names documents that do not exist.
    """
    record = manifest.decontamination
    if split != "validation" or record is None:
        return np.zeros(0, dtype=np.int64)
    excluded = _checked_array(directory, record.excluded)
    documents = manifest.splits[split].documents
    numbers = excluded.dtype == np.int64 and excluded.ndim == 1 and bool((np.diff(excluded, prepend=-1) > 0).all())
    if not numbers or len(excluded) != record.excluded_documents or (excluded >= documents).any():
        raise DataError(
            f"{directory / record.excluded.name}: {excluded.dtype} {excluded.shape}, expected the ascending int64 "
            f"numbers of {record.excluded_documents} of {documents} documents"
        )
    return excluded
