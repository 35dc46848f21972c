import os
import shutil

import numpy as np
import pytest

from card_scale.data import documents
from card_scale.data.documents import shards_of
from card_scale.data.manifest import Manifest
from card_scale.errors import DataError
from tests.corpora import write_dataset
from tests.corpus.test_build import read_documents


def read(directory, split, numbers=None):
    found = {}
    for shard in shards_of(directory, Manifest.load(directory), split, numbers):
        for batch in shard.batches():
            begins = [0, *batch.ends[:-1]]
            for number, begin, end in zip(batch.numbers.tolist(), begins, batch.ends, strict=True):
                found[number] = batch.tokens[begin:end].tolist()
    return found


@pytest.mark.parametrize("batch_tokens", [1, 300, 1 << 18])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_document_is_read_in_order_without_its_eos(dataset, split, batch_tokens, monkeypatch):
    monkeypatch.setattr(documents, "_BATCH_TOKENS", batch_tokens)
    expected = [ids[:-1] for ids in read_documents(dataset, split)]
    found = read(dataset, split)
    assert list(found) == list(range(len(expected)))
    assert list(found.values()) == expected


def test_a_batch_holds_at_most_its_tokens_unless_one_document_is_longer(dataset, monkeypatch):
    monkeypatch.setattr(documents, "_BATCH_TOKENS", 300)
    batches = [batch for shard in shards_of(dataset, Manifest.load(dataset), "train") for batch in shard.batches()]
    sizes = [(len(batch.ends), len(batch.tokens) + len(batch.ends)) for batch in batches]  # an EOS each
    assert any(tokens > 300 for _, tokens in sizes)
    assert any(count > 1 for count, _ in sizes)
    assert all(tokens <= 300 for count, tokens in sizes if count > 1)


def test_a_choice_of_documents_is_read(dataset):
    whole = read(dataset, "train")
    numbers = np.array([0, 3, 4, len(whole) - 1])
    found = read(dataset, "train", numbers)
    assert list(found) == numbers.tolist()
    assert all(found[number] == whole[number] for number in found)
    assert read(dataset, "train", numbers[:0]) == {}


def test_documents_may_hold_nothing_but_their_eos(tmp_path, tokenizer_path):
    directory = write_dataset(tmp_path / "data", tokenizer_path, 2, train=[[], [7], [], [], [8, 9]])
    assert list(read(directory, "train").values()) == [[], [7], [], [], [8, 9]]
    assert read(directory, "validation") == {}


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_no_damaged_shard_is_read(dataset, tmp_path, damage):
    directory = shutil.copytree(dataset, tmp_path / "data")
    path = directory / Manifest.load(directory).splits["train"].shards[1].name
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        os.truncate(path, 1024)
    else:
        content = bytearray(path.read_bytes())
        content[3 * 512 + 130] ^= 1
        path.write_bytes(content)
    with pytest.raises(DataError, match=path.name):
        read(directory, "train")
