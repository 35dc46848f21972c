import dataclasses
import json
import shutil

import pytest

from card_scale.corpus.summary import describe
from card_scale.data.manifest import Manifest, check_sizes, token_dtype
from card_scale.errors import DataError


def test_it_comes_back_as_it_was_saved(dataset, tmp_path):
    manifest = Manifest.load(dataset)
    manifest.save(tmp_path)
    again = Manifest.load(tmp_path)
    assert again == manifest
    assert again.digest == manifest.digest
    assert (tmp_path / "manifest.json").read_bytes() == (dataset / "manifest.json").read_bytes()


def test_it_names_no_path_of_this_machine(dataset, corpus):
    assert str(corpus.parent) not in (dataset / "manifest.json").read_text()


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.4, 0.6, 0.8, 0.99])
def test_any_changed_byte_is_noticed(dataset, tmp_path, fraction):
    content = bytearray((dataset / "manifest.json").read_bytes())
    place = int(len(content) * fraction)
    while not chr(content[place]).isalnum():
        place += 1
    content[place] = ord("1") if content[place] != ord("1") else ord("2")
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(DataError, match=r"manifest\.json"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    "content, message",
    [(None, "no such file"), ("", "not valid JSON"), ("[]", "object"), ('{"format": 9}', "format 9")],
)
def test_an_unreadable_one_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=rf"manifest\.json.*{message}"):
        Manifest.load(tmp_path)


def test_the_digest_follows_the_data_and_not_how_it_was_made(dataset):
    manifest = Manifest.load(dataset)
    other = Manifest(**{**vars(manifest), "settings": {"shard_bytes": 1}})
    assert other.digest == manifest.digest
    assert Manifest(**{**vars(manifest), "vocabulary_size": 401}).digest != manifest.digest


def test_the_digest_tells_tokenizers_of_one_size_apart(dataset):
    manifest = Manifest.load(dataset)
    tokenizer = dataclasses.replace(manifest.tokenizer, sha256="0" * 64)
    shards = tuple(dataclasses.replace(shard, sha256="0" * 64) for shard in manifest.splits["train"].shards)
    train = dataclasses.replace(manifest.splits["train"], shards=shards)
    for change in (
        {"tokenizer": tokenizer},
        {"special_ids": {**manifest.special_ids, "extra": 1}},
        {"splits": {**manifest.splits, "train": train}},
    ):
        assert dataclasses.replace(manifest, **change).digest != manifest.digest


def test_all_missing_and_truncated_files_are_named(dataset, tmp_path):
    directory = shutil.copytree(dataset, tmp_path / "copy")
    (directory / "tokenizer.model").unlink()
    shard = Manifest.load(directory).splits["train"].shards[1]
    (directory / shard.name).write_bytes(b"x" * 7)
    with pytest.raises(DataError) as caught:
        check_sizes(directory, Manifest.load(directory))
    for part in ("tokenizer.model", shard.name, "7 bytes", f"expected {shard.bytes}"):
        assert part in str(caught.value)


@pytest.mark.parametrize("size, name", [(300, "uint16"), (65536, "uint16"), (65537, "uint32")])
def test_tokens_are_stored_as_small_as_the_vocabulary_allows(size, name):
    assert token_dtype(size).name == name


def test_it_says_of_rewriting_where_there_is_any(dataset, tmp_path):
    manifest = Manifest.load(dataset)
    assert "rewrites" not in json.loads((dataset / "manifest.json").read_text())
    rewriting = dataclasses.replace(manifest, rewrites=("accents ('\\xe9' becomes 'e')",))
    rewriting.save(tmp_path)
    assert Manifest.load(tmp_path) == rewriting
    assert rewriting.digest == manifest.digest
    assert "this tokenizer rewrites text: accents ('\\xe9' becomes 'e')" in describe(tmp_path)
    assert "rewrites" not in describe(dataset)
