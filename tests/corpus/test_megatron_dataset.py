"""Megatron's indexed datasets, written by Megatron-core's own builder, become datasets with the same tokens."""

import itertools
import json
import struct
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

from card_scale.corpus.megatron_dataset import ImportSettings, MegatronDataset, import_megatron
from card_scale.corpus.summary import show_documents
from card_scale.corpus.verify import verify_dataset
from card_scale.data.manifest import Manifest
from card_scale.data.order import document_order
from card_scale.data.stream import PackedStream
from card_scale.data.tokenizer import BOS_ID, EOS_ID, MASK_ID, Tokenizer
from card_scale.errors import DataError

LENGTH = 16


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path):
    return Tokenizer.load(tokenizer_path)


def write(prefix, documents, dtype=np.int32, end=(EOS_ID,)):
    """Each document is a list of sequences."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for sequences in documents:
        ids = [*(token for sequence in sequences for token in sequence), *end]
        lengths = [*map(len, sequences[:-1]), len(sequences[-1]) + len(end)]
        builder.add_document(torch.tensor(ids, dtype=torch.int64), lengths)
    builder.finalize(f"{prefix}.idx")
    return prefix


def imported(prefixes, tokenizer_path, directory, fraction=0.0, shard_bytes=1 << 20):
    return import_megatron(ImportSettings(tuple(prefixes), fraction, shard_bytes), tokenizer_path, directory)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
@pytest.mark.parametrize("end", [(EOS_ID,), ()])
def test_the_stream_has_megatrons_tokens(tmp_path, texts, tokenizer, tokenizer_path, dtype, end):
    write(tmp_path / "a", [[tokenizer.encode(text)] for text in texts], dtype, end)
    manifest, opening = imported([tmp_path / "a.bin"], tokenizer_path, tmp_path / "data", shard_bytes=4000)
    assert len(manifest.splits["train"].shards) > 3
    assert texts[0].startswith(opening)
    theirs = [document.tolist() for document in IndexedDataset(str(tmp_path / "a"))]
    documents = [tokens if end else [*tokens, EOS_ID] for tokens in theirs]
    ordered = [token for number in document_order(5, len(documents)) for token in documents[number]]
    stream = PackedStream(tmp_path / "data", "train", 5, LENGTH)
    assert stream.token_count == len(ordered)
    for number, sample in enumerate(stream.samples(np.arange(stream.sample_count))):
        assert sample.tolist() == ordered[number * LENGTH : (number + 1) * LENGTH + 1]
    assert manifest.counts["text_bytes"] == sum(len(text.encode()) for text in texts)
    assert verify_dataset(tmp_path / "data") == []
    assert "a, record 0" in show_documents(tmp_path / "data", "train", 0, 1, 40)


@given(
    documents=st.lists(st.lists(st.lists(st.integers(5, 399), max_size=4), min_size=1, max_size=3), max_size=5),
    dtype=st.sampled_from([np.int16, np.uint16, np.int32, np.int64]),
)
@settings(max_examples=40, deadline=None)
def test_documents_of_several_sequences(tmp_path_factory, documents, dtype):
    prefix = write(tmp_path_factory.mktemp("m") / "x.text_document", documents, dtype, ())
    found = MegatronDataset(prefix)
    assert len(found) == len(documents)
    assert [tokens.tolist() for tokens in found.documents()] == [
        [*itertools.chain(*sequences)] for sequences in documents
    ]


def test_several_datasets_follow_each_other_and_are_split_by_content(tmp_path, tokenizer_path):
    documents = [[[5 + number, 6, 7]] for number in range(40)]
    write(tmp_path / "a", documents)
    write(tmp_path / "b", [*documents[:10], [[]], [[BOS_ID, 9, EOS_ID, 8]]], np.uint16)
    manifest, _ = imported([tmp_path / "a", tmp_path / "b.idx"], tokenizer_path, tmp_path / "data", 0.3)
    assert [source["name"] for source in manifest.sources] == ["a", "b"]
    assert (manifest.counts["documents"], manifest.counts["empty_dropped"]) == (51, 1)
    # Equal documents stand on one side: a's first ten and b's.
    held = manifest.splits["validation"].documents
    assert 0 < held < 51
    shown = "\n".join(show_documents(tmp_path / "data", split, 0, 60, 9) for split in ("train", "validation"))
    for number in range(10):
        sides = [shown.split(f"{name}, record {number},")[0].count("--- validation") for name in ("a", "b")]
        assert bool(sides[0]) == bool(sides[1])
    assert verify_dataset(tmp_path / "data") == []
    assert Manifest.load(tmp_path / "data") == manifest


def test_the_two_files_of_a_dataset_are_one_input(tmp_path, tokenizer_path):
    for name in "ab":
        write(tmp_path / name, [[[5, 6, 7]]])
    manifest, _ = imported(sorted(tmp_path.glob("[ab].*")), tokenizer_path, tmp_path / "data")
    assert [source["name"] for source in manifest.sources] == ["a", "b"]
    assert manifest.counts["documents"] == 2
    with pytest.raises(DataError, match=r"a\.bin: an input twice"):
        imported([tmp_path / "a.bin", tmp_path / "b", tmp_path / "a.bin"], tokenizer_path, tmp_path / "other")


def test_the_bounds_of_all_documents_are_never_python_integers_at_once(tmp_path):
    count = 150_000
    tokens = np.arange(count, dtype="<u2")
    (tmp_path / "a.bin").write_bytes(tokens.tobytes())
    arrays = np.ones(count, "<i4"), 2 * np.arange(count, dtype="<i8"), np.arange(count + 1, dtype="<i8")
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, count, count + 1)
    (tmp_path / "a.idx").write_bytes(header + b"".join(array.tobytes() for array in arrays))
    documents = MegatronDataset(tmp_path / "a").documents()
    tracemalloc.start()
    first = next(documents)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 * count
    assert np.concatenate([first, *documents]).tolist() == tokens.tolist()


def changed_index(prefix, place, content):
    path = prefix.with_name(f"{prefix.name}.idx")
    data = bytearray(path.read_bytes())
    data[place : place + len(content)] = content
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda p: changed_index(p, 0, b"TNTIDX"), "a.idx: begins with b'TNTIDX"),
        (lambda p: changed_index(p, 9, struct.pack("<Q", 2)), "a.idx: version 2 of the format"),
        (lambda p: changed_index(p, 17, b"\x07"), "a.idx: type code 7 is none of tokens; valid are 1 (uint8)"),
        (lambda p: changed_index(p, 17, b"\x63"), "a.idx: type code 99 is none of tokens"),
        (lambda p: changed_index(p, 18, struct.pack("<Q", 7)), "a.idx: 82 bytes, with 7 sequences and 2 documents"),
        (lambda p: changed_index(p, 74, struct.pack("<q", 3)), "a.idx: damaged or unfinished"),
        (lambda p: changed_index(p, 34, struct.pack("<i", -1)), "a.idx: damaged: a sequence of negative length"),
        (lambda p: (p.parent / "a.idx").write_bytes((p.parent / "a.idx").read_bytes()[:-4]), "a.idx: 78 bytes, with 2"),
        (lambda p: (p.parent / "a.idx").write_bytes(b"MMIDIDX\x00\x00\x01"), "a.idx: cut off: 10 bytes"),
        (lambda p: (p.parent / "a.bin").write_bytes(b"\x05\x00"), "a.bin: 2 bytes, but a.idx names tokens up to byte"),
        (lambda p: (p.parent / "a.bin").unlink(), "a.bin: no such file"),
        (lambda p: (p.parent / "a.idx").unlink(), "a.idx: no such file"),
    ],
)
def test_damage_is_named(tmp_path, tokenizer_path, damage, words):
    prefix = write(tmp_path / "a", [[[5, 6]], [[7]]])
    damage(prefix)
    with pytest.raises(DataError) as caught:
        imported([prefix], tokenizer_path, tmp_path / "data")
    assert str(caught.value).startswith(f"{tmp_path}/{words}")
    assert not (tmp_path / "data").exists()


def test_a_multimodal_dataset_is_refused(tmp_path):
    builder = IndexedDatasetBuilder(f"{tmp_path}/a.bin", dtype=np.int32, multimodal=True)
    builder.add_document(torch.tensor([5, 6]), [2], [1])
    builder.finalize(f"{tmp_path}/a.idx")
    with pytest.raises(DataError, match="multimodal"):
        MegatronDataset(tmp_path / "a")


@pytest.mark.parametrize(
    "token, words",
    [(400, "id 400, the tokenizer has 400"), (-1, "id -1"), (MASK_ID, r"id 4, which is \[MASK\]")],
)
def test_ids_that_are_not_the_tokenizers_are_named(tmp_path, tokenizer_path, token, words):
    write(tmp_path / "a", [[[5, 6]], [[7, token]]])
    with pytest.raises(DataError, match=rf"a\.bin: document 1 holds {words}"):
        imported([tmp_path / "a"], tokenizer_path, tmp_path / "data")
    assert not (tmp_path / "data").exists()
    # What it left does not stand in the way of the next try.
    write(tmp_path / "a", [[[5, 6]], [[7, 8]]])
    imported([tmp_path / "a"], tokenizer_path, tmp_path / "data")
    assert not (tmp_path / "data.partial").exists()
    with pytest.raises(DataError, match="data exists; choose another directory"):
        imported([tmp_path / "a"], tokenizer_path, tmp_path / "data")


def test_nothing_for_train_is_an_error(tmp_path, tokenizer_path):
    write(tmp_path / "a", [[[]], [[]]])
    with pytest.raises(DataError, match="no document with tokens"):
        imported([tmp_path / "a"], tokenizer_path, tmp_path / "data")


def test_the_manifest_says_where_the_tokens_are_from(tmp_path, tokenizer_path):
    write(tmp_path / "a", [[[5, 6]]])
    imported([tmp_path / "a"], tokenizer_path, tmp_path / "data")
    content = json.loads((tmp_path / "data/manifest.json").read_text())
    assert content["settings"]["tokens_from"] == "megatron"
    assert content["tokenizer"]["name"] == "tokenizer.model"


def test_the_command_shows_what_it_made(tmp_path, texts, tokenizer, tokenizer_path):
    write(tmp_path / "a", [[tokenizer.encode(text)] for text in texts[:9]])
    command = [sys.executable, "tools/data.py", "import-megatron", tmp_path / "a", "--tokenizer", tokenizer_path]
    done = subprocess.run(
        [*map(str, command), "--output", str(tmp_path / "data"), "--validation-fraction", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "documents: 9, " in done.stdout
    assert "the first document begins: " in done.stdout
    again = subprocess.run([*map(str, command), "--output", str(tmp_path / "data")], capture_output=True, check=False)
    assert again.returncode == 4
    assert again.stderr.decode().startswith(f"error: {tmp_path}/data exists; choose another")
