import os
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from card_scale.corpus.units import split_of
from card_scale.data.manifest import Manifest, load_index
from card_scale.data.order import document_order
from card_scale.data.stream import PackedStream
from card_scale.data.tokenizer import EOS_ID, Tokenizer
from card_scale.errors import ConfigurationError, DataError

LENGTH = 16


@pytest.fixture(scope="module")
def documents(texts, tokenizer_path, settings):
    """Each split's documents as the corpus and the tokenizer say, with nothing read from the dataset."""
    tokenizer = Tokenizer.load(tokenizer_path)
    found = {"train": [], "validation": []}
    for text in texts:
        found[split_of(text.encode(), settings.validation_fraction)].append([*tokenizer.encode(text), EOS_ID])
    return found


def packed(documents, order, length):
    stream = [token for number in order for token in documents[number]]
    return [stream[k * length : k * length + length + 1] for k in range((len(stream) - 1) // length)]


@given(st.integers(0, 2**40), st.integers(1, 700))
@hypothesis_settings(max_examples=30)
def test_samples_are_slices_of_the_concatenated_documents(dataset, documents, seed, length):
    stream = PackedStream(dataset, "train", seed, length)
    order = document_order(seed, len(documents["train"]))
    expected = packed(documents["train"], order, length)
    assert stream.sample_count == len(expected)
    found = stream.samples(np.arange(stream.sample_count))
    assert found.dtype == np.int64
    assert found.tolist() == expected
    some = np.random.default_rng(0).integers(0, stream.sample_count, 5)
    assert stream.samples(some).tolist() == [expected[k] for k in some]


def test_the_validation_stream_does_not_depend_on_the_seed(dataset, documents):
    expected = packed(documents["validation"], range(len(documents["validation"])), LENGTH)
    for seed in (0, 5):
        stream = PackedStream(dataset, "validation", seed, LENGTH)
        assert stream.samples(np.arange(stream.sample_count)).tolist() == expected


def test_neighbours_overlap_by_one_token(dataset):
    stream = PackedStream(dataset, "train", 0, LENGTH)
    samples = stream.samples(np.arange(stream.sample_count))
    assert (samples[:-1, -1] == samples[1:, 0]).all()


@given(st.data())
@hypothesis_settings(max_examples=30)
def test_a_smaller_subset_is_a_prefix(dataset, data):
    whole = PackedStream(dataset, "train", 3, LENGTH)
    count = data.draw(st.integers(LENGTH + 1, whole.token_count))
    part = PackedStream(dataset, "train", 3, LENGTH, unique_tokens=count)
    assert part.token_count == count
    assert part.sample_count == (count - 1) // LENGTH
    ids = np.arange(part.sample_count)
    assert (part.samples(ids) == whole.samples(ids)).all()
    with pytest.raises(IndexError):
        part.samples(np.array([part.sample_count]))


def test_sample_ids_outside_the_epoch_are_refused(dataset):
    stream = PackedStream(dataset, "train", 0, LENGTH)
    for wrong in (-1, stream.sample_count):
        with pytest.raises(IndexError, match=str(wrong)):
            stream.samples(np.array([0, wrong]))
    assert stream.samples(np.array([], dtype=np.int64)).shape == (0, LENGTH + 1)


def test_impossible_subsets_and_lengths_are_named(dataset):
    tokens = Manifest.load(dataset).splits["train"].tokens
    with pytest.raises(ConfigurationError, match=f"{tokens + 1}.*has {tokens} tokens"):
        PackedStream(dataset, "train", 0, LENGTH, unique_tokens=tokens + 1)
    with pytest.raises(DataError, match=rf"{tokens} tokens, one sample of model.length = {tokens}"):
        PackedStream(dataset, "train", 0, tokens)
    with pytest.raises(DataError, match=r"after data\.unique_tokens = 5"):
        PackedStream(dataset, "train", 0, LENGTH, unique_tokens=5)


def test_more_shards_than_may_be_open_are_read(dataset, monkeypatch):
    monkeypatch.setattr("card_scale.data.stream._OPEN_SHARDS", 2)
    few = PackedStream(dataset, "train", 0, LENGTH)
    monkeypatch.undo()
    many = PackedStream(dataset, "train", 0, LENGTH)
    ids = np.arange(many.sample_count)
    assert (few.samples(ids) == many.samples(ids)).all()


@pytest.fixture
def copy(dataset, tmp_path):
    return shutil.copytree(dataset, tmp_path / "data")


def read_all(directory):
    stream = PackedStream(directory, "train", 0, LENGTH)
    return stream.samples(np.arange(stream.sample_count))


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("number", [0, -1])
@pytest.mark.parametrize("damage", ["missing", "truncated", "longer", "token", "zeroed", "swapped"])
def test_no_damaged_shard_is_read(copy, number, damage):
    split = Manifest.load(copy).splits["train"]
    shard = split.shards[number]
    path = copy / shard.name
    row = load_index(copy, split)[number]
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        os.truncate(path, shard.bytes - 512)
    elif damage == "longer":
        path.write_bytes(path.read_bytes() + bytes(512))
    elif damage == "token":
        flip(path, int(row["offset"]))
    elif damage == "zeroed":
        content = path.read_bytes()
        path.write_bytes(content[: int(row["offset"])].ljust(shard.bytes, b"\0"))
    else:
        path.write_bytes((copy / split.shards[number - 1].name).read_bytes().ljust(shard.bytes, b"\0")[: shard.bytes])
    with pytest.raises(DataError, match=shard.name):
        read_all(copy)


def test_damage_in_one_tar_header_does_no_harm(copy):
    """Members are found by the index, so a header that would end a tar for any tar reader costs nothing."""
    split = Manifest.load(copy).splits["train"]
    expected = read_all(copy)
    flip(copy / split.shards[0].name, 3)
    assert (read_all(copy) == expected).all()


@pytest.mark.parametrize("name", ["index-train.npy", "index-validation.npy", "tokenizer.model", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "flipped"])
def test_no_other_damaged_file_is_used(copy, name, damage):
    path = copy / name
    if damage == "missing":
        path.unlink()
    elif damage == "flipped":
        flip(path, path.stat().st_size // 2)
    else:
        os.truncate(path, 0 if damage == "empty" else path.stat().st_size - 1)
    split = "validation" if "validation" in name else "train"
    with pytest.raises(DataError, match=name):
        PackedStream(copy, split, 0, LENGTH)


def test_a_shard_that_is_replaced_while_in_use_is_noticed(copy):
    stream = PackedStream(copy, "train", 0, LENGTH)
    shard = stream.manifest.splits["train"].shards[0]
    os.truncate(copy / shard.name, 600)
    with pytest.raises(DataError, match=rf"{shard.name}: 600 bytes"):
        stream.samples(np.arange(stream.sample_count))
