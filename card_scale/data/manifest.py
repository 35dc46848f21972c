"""The manifest of a dataset directory: what exists, how large it is and what it hashes to.

A dataset directory holds ``tokenizer.model``, ``train-UUUUUU-NNN.tar`` and ``validation-UUUUUU-NNN.tar`` shards,
``index-train.npy``, ``index-validation.npy`` and ``manifest.json``, which is written last: a directory without it is
an unfinished build. Only what the manifest lists is ever read. A damaged tar can look like a shorter one to any reader
(it has no checksum of its data), so sizes, counts and hashes stand here.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from card_scale.data.shards import INDEX_DTYPE, ShardRecord
from card_scale.errors import DataError
from card_scale.files import sha256_file, write_atomically

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
TOKENIZER_NAME = "tokenizer.model"
SPLITS = ("train", "validation")
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
    format: int = field(default=FORMAT_VERSION)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that identify the data: equal for equal shards, indexes and tokenizer."""
        identity = {
            "vocabulary_size": self.vocabulary_size,
            "special_ids": dict(self.special_ids),
            "tokenizer": self.tokenizer.sha256,
            "splits": {name: asdict(split) for name, split in self.splits.items()},
        }
        return _checksum(identity)[:16]

    def save(self, directory: Path) -> None:
        """Write ``manifest.json`` durably and atomically, with a checksum of its own content."""
        content = asdict(self)
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
            }
        )


def _split(value: dict) -> Split:
    shards = tuple(ShardRecord(**shard) for shard in value["shards"])
    return Split(value["documents"], value["tokens"], FileRecord(**value["index"]), shards)


def _checksum(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_sizes(directory: Path, manifest: Manifest) -> None:
    """Check that every file of the manifest exists with its size, all shards at the cost of one ``stat`` each.

    Raises:
        DataError: naming the files, sizes found and expected.
    """
    files: list[FileRecord | ShardRecord] = [manifest.tokenizer]
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


def load_index(directory: Path, split: Split) -> np.ndarray:
    """A split's index, checked by its hash: ``INDEX_DTYPE`` [documents].

    Raises:
        DataError: the file is not the manifest's.
    """
    check_hash(directory, split.index)
    index = np.load(directory / split.index.name, allow_pickle=False)
    if index.dtype != INDEX_DTYPE or len(index) != split.documents or int(index["tokens"].sum()) != split.tokens:
        raise DataError(
            f"{directory / split.index.name}: {len(index)} documents, {index.dtype}; the manifest says "
            f"{split.documents} documents and {split.tokens} tokens"
        )
    return index
