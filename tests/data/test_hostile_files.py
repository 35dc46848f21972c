"""Whoever can write a dataset cannot run code by it: a file that holds code is refused by its name.

The manifest says of each file what is there: hashes tell damage, and not who wrote a file.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from card_scale.corpus import summary
from card_scale.corpus.verify import verify_dataset
from card_scale.data.documents import shards_of
from card_scale.data.manifest import (
    MANIFEST_NAME,
    Decontamination,
    FileRecord,
    Manifest,
    load_excluded,
    load_index,
)
from card_scale.data.stream import PackedStream
from card_scale.data.tokenizer import Tokenizer
from card_scale.errors import DataError
from card_scale.files import sha256_file
from tests.corpora import TOKENIZER_NAME
from tests.hostile import Hostile

EXCLUDED = "excluded-validation-0123.npy"


@pytest.fixture
def decontaminated(dataset, tmp_path) -> Path:
    """A copy of the dataset with a validation document left out."""
    directory = shutil.copytree(dataset, tmp_path / "data")
    np.save(directory / EXCLUDED, np.array([0]))
    let_manifest_agree(directory)
    assert verify_dataset(directory) == []
    return directory


def let_manifest_agree(directory: Path) -> None:
    """Make the manifest say of every file beside the shards what is there."""

    def record(name: str) -> FileRecord:
        return FileRecord(name, (directory / name).stat().st_size, sha256_file(directory / name))

    manifest = Manifest.load(directory)
    splits = {name: replace(split, index=record(split.index.name)) for name, split in manifest.splits.items()}
    excluded = Decontamination(13, 0.5, (), 9, 90, 8, 1, {}, 1, 17, record(EXCLUDED))
    replace(manifest, splits=splits, tokenizer=record(TOKENIZER_NAME), decontamination=excluded).save(directory)


def test_a_manifest_is_not_unpickled(decontaminated, hostile):
    for content in hostile.files.values():
        (decontaminated / MANIFEST_NAME).write_bytes(content)
        with pytest.raises(DataError, match=rf"{decontaminated}/manifest\.json: not valid JSON"):
            verify_dataset(decontaminated)


def header(text: str) -> bytes:
    """An .npy file with this header, and no array."""
    line = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line


HEADERS = [
    "__import__('os').mkdir('MARKER')",
    "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
    "{'descr': [('tokens', '|O')], 'fortran_order': False, 'shape': (1,)}",
    "{'descr': '<i8', 'fortran_order': False, 'shape': ()}",
    "{'descr': '<i8', 'fortran_order': False, 'shape': (10000000000000000,)}",
    "{'descr': (",
]
"""Code, Python objects, no dimension, more than memory, an open bracket."""


@pytest.mark.parametrize("name", ["index-train.npy", "index-validation.npy", EXCLUDED])
def test_an_array_is_not_unpickled(decontaminated, hostile: Hostile, name):
    headers = [header(text.replace("MARKER", str(hostile.marker))) + bytes(8) for text in HEADERS]
    for content in [*hostile.files.values(), *headers]:
        (decontaminated / name).write_bytes(content)
        let_manifest_agree(decontaminated)
        manifest = Manifest.load(decontaminated)
        with pytest.raises(DataError, match=f"{decontaminated}/{name}: "):
            [PackedStream(decontaminated, split, 0, 8) for split in manifest.splits]
        with pytest.raises(DataError, match=f"{decontaminated}/{name}: "):
            [summary.show_documents(decontaminated, split, 0, 1, 10) for split in manifest.splits]
        (problem,) = verify_dataset(decontaminated)
        assert problem.startswith(f"{decontaminated}/{name}: ")
        assert not hostile.marker.exists()


def test_a_tokenizer_is_not_unpickled(decontaminated, hostile):
    for content in hostile.files.values():
        (decontaminated / TOKENIZER_NAME).write_bytes(content)
        let_manifest_agree(decontaminated)
        with pytest.raises(DataError, match=f"{decontaminated}/{TOKENIZER_NAME}: not a sentencepiece model"):
            Tokenizer.load(decontaminated / TOKENIZER_NAME)
        (problem,) = verify_dataset(decontaminated)
        assert problem.startswith(f"{decontaminated}/{TOKENIZER_NAME}: ")


def test_a_shard_is_not_unpickled(decontaminated, hostile):
    manifest = Manifest.load(decontaminated)
    shard = manifest.splits["train"].shards[0]
    path = decontaminated / shard.name
    for content in hostile.files.values():
        path.write_bytes(content.ljust(shard.bytes, b"\0")[: shard.bytes])
        with pytest.raises(DataError, match=f"{path}: damaged at byte"):
            PackedStream(decontaminated, "train", 0, 8).samples(np.arange(len(manifest.splits["train"].shards) * 50))
        with pytest.raises(DataError, match=f"{path}: damaged at byte"):
            [list(one.batches()) for one in shards_of(decontaminated, manifest, "train")]
        with pytest.raises(DataError, match=f"{path}: does not say where the document at byte"):
            summary.show_documents(decontaminated, "train", 0, 1, 10)
        assert all(str(path) in problem for problem in verify_dataset(decontaminated))


def test_sound_arrays_are_read(decontaminated):
    manifest = Manifest.load(decontaminated)
    assert load_excluded(decontaminated, manifest, "validation").tolist() == [0]
    assert len(load_index(decontaminated, manifest.splits["train"])) == manifest.splits["train"].documents
