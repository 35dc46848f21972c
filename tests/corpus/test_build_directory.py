"""A directory whose build failed or shows that it cannot succeed costs nothing but that build."""

import json
import re
from contextlib import contextmanager

import pytest

from card_scale.corpus import build_directory
from card_scale.corpus.build import BuildSettings, build_dataset
from card_scale.corpus.document_parts import PartSizes
from card_scale.corpus.sources import InputSettings
from card_scale.corpus.summary import show_documents, validation_warning
from card_scale.corpus.verify import verify_dataset
from card_scale.data.manifest import Manifest
from card_scale.data.tokenizer import Tokenizer
from card_scale.errors import DataError
from tests.corpora import make_texts, write_dataset


@pytest.fixture
def build(tmp_path, tokenizer_path):
    """Return a function that builds ``in`` into ``data`` and gives the manifest."""

    def built(fraction=0.0, workers=1, unit_bytes=None, **inputs):
        settings = BuildSettings(InputSettings((str(tmp_path / "in"),), **inputs), fraction, unit_bytes)
        return build_dataset(settings, tokenizer_path, tmp_path / "data", workers).manifest

    (tmp_path / "in").mkdir()
    return built


def write_lines(path, texts, key="text"):
    path.write_text("".join(json.dumps({key: text}) + "\n" for text in texts))


@pytest.mark.parametrize("workers", [1, 2])
def test_the_right_key_after_a_wrong_one_just_builds(build, tmp_path, workers):
    for name in "ab":
        write_lines(tmp_path / "in" / f"{name}.jsonl", make_texts(20, seed=1), key="body")
    with pytest.raises(DataError, match="no key 'text'"):
        build(workers=workers, unit_bytes=4000)
    assert build(workers=workers, unit_bytes=3000, text_key="body").counts["documents"] == 40
    assert verify_dataset(tmp_path / "data") == []


def test_what_failed_may_be_repaired_before_anything_is_finished(build, tmp_path):
    (tmp_path / "in" / "a.jsonl").write_text('{"text": "a"}\n{broken')
    with pytest.raises(DataError, match="line 2: not valid JSON"):
        build()
    write_lines(tmp_path / "in" / "a.jsonl", ["a", "b"])
    assert build().counts["documents"] == 2


def test_another_build_may_finish_before_this_one_holds_the_directory(build, tmp_path, monkeypatch):
    write_lines(tmp_path / "in" / "a.jsonl", ["a", "b"])
    locked = build_directory.locked
    others = [build, build]

    @contextmanager
    def after_another(directory):
        if others:
            others.pop()()
        with locked(directory):
            yield

    monkeypatch.setattr(build_directory, "locked", after_another)
    manifest = build()
    assert not others
    assert Manifest.load(tmp_path / "data") == manifest
    assert verify_dataset(tmp_path / "data") == []
    assert not (tmp_path / "data" / "build").exists()


def test_a_finished_dataset_is_never_discarded_for_another_plan(build, tmp_path, monkeypatch):
    write_lines(tmp_path / "in" / "a.jsonl", ["a", "b"])
    # Where a build stops just before it removes the plan, its units being gone.
    monkeypatch.setattr(build_directory, "clean", lambda directory: (directory / "build/unit-000000.json").unlink())
    manifest = build()
    locked = build_directory.locked

    @contextmanager
    def manifest_comes_late(directory):
        (directory / "aside").rename(directory / "manifest.json")
        with locked(directory):
            yield

    monkeypatch.setattr(build_directory, "locked", manifest_comes_late)
    (tmp_path / "data" / "manifest.json").rename(tmp_path / "data" / "aside")
    with pytest.raises(DataError, match=r"made otherwise: .*skip_invalid is True"):
        build(skip_invalid=True)
    assert Manifest.load(tmp_path / "data") == manifest
    assert verify_dataset(tmp_path / "data") == []


@pytest.mark.parametrize("finished_before", [False, True])
def test_a_directory_is_cleaned_by_who_holds_it(build, tmp_path, monkeypatch, finished_before):
    write_lines(tmp_path / "in" / "a.jsonl", ["a", "b"])
    if finished_before:
        build()
        (tmp_path / "data" / "build").mkdir()
    clean, cleaned = build_directory.clean, []

    def watched(directory):
        with pytest.raises(DataError, match="another build is at work"), build_directory.locked(directory):
            pass
        cleaned.append(directory)
        clean(directory)

    monkeypatch.setattr(build_directory, "clean", watched)
    build()
    assert cleaned == [tmp_path / "data"]
    assert not (tmp_path / "data" / "build").exists()


def test_a_finished_dataset_is_only_read(build, tmp_path, monkeypatch):
    write_lines(tmp_path / "in" / "a.jsonl", ["a", "b"])
    manifest = build()
    monkeypatch.setattr(build_directory, "locked", None)
    assert build() == manifest


def test_finished_units_are_kept_and_bind(build, tmp_path):
    write_lines(tmp_path / "in" / "a.jsonl", make_texts(20, seed=1))
    (tmp_path / "in" / "b.jsonl").write_text("{broken")
    with pytest.raises(DataError, match="not valid JSON"):
        build(unit_bytes=4000)
    assert list((tmp_path / "data" / "build").glob("unit-*.json"))
    with pytest.raises(DataError, match=r"made otherwise: .*skip_invalid is True \(then False\)"):
        build(unit_bytes=4000, skip_invalid=True)


def test_which_files_were_looked_for_does_not_matter_where_they_are_the_same(build, tmp_path):
    write_lines(tmp_path / "in" / "a.jsonl", ["a", "b"])
    build()
    build(patterns=("a.*",), exclude=("*.csv",), hidden=True)
    (tmp_path / "in" / "b.txt").write_text("new")
    with pytest.raises(DataError, match="made otherwise: input in has 2 files"):
        build()


def test_another_division_into_units_is_not_mixed_with_what_is_finished(build, tmp_path):
    write_lines(tmp_path / "in" / "a.jsonl", make_texts(20, seed=1))
    (tmp_path / "in" / "b.jsonl").write_text("{broken")
    with pytest.raises(DataError, match="not valid JSON"):
        build(unit_bytes=4000)
    plan = tmp_path / "data" / "build" / "plan.json"
    content = json.loads(plan.read_bytes())
    plan.write_text(json.dumps(content | {"division into units": "of another version"}))
    with pytest.raises(DataError, match=r"division into units is .* \(then 'of another version'\)"):
        build(unit_bytes=4000)


def test_one_big_file_is_split_into_both_sides(build, tmp_path, tokenizer_path):
    text = "\n\n".join(make_texts(60, seed=1)).encode()
    (tmp_path / "in" / "input.txt").write_bytes(text)
    with pytest.raises(DataError, match=r"none of 1 documents fell to .*--split-documents BYTES makes more documents"):
        build(0.2)
    manifest = build(0.2, split_documents=1000, unit_bytes=5000, workers=2)
    parts = PartSizes(1000).split(text)
    assert manifest.counts["documents"] == len(parts) > 60
    assert manifest.counts["text_bytes"] == len(text)
    assert min(split.documents for split in manifest.splits.values()) > 5
    assert manifest.settings["inputs"]["split_documents"] == 1000
    assert len({shard.name.split("-")[1] for shard in manifest.splits["train"].shards}) > 3
    shown = show_documents(tmp_path / "data", "train", 3, 1, 10_000)
    origin, _, found = shown.partition(" tokens\n")
    number = int(origin.partition("input.txt, record 0, part ")[2].partition(",")[0])
    assert found.encode() == parts[number]
    assert Tokenizer.load(tokenizer_path).encode(found)
    with pytest.raises(DataError, match=r"split_documents is 900 \(then 1000\)"):
        build(0.2, split_documents=900, unit_bytes=5000)


def test_splitting_does_not_depend_on_units_or_workers(tmp_path, tokenizer_path):
    (tmp_path / "input.txt").write_bytes("\n".join(make_texts(60, seed=1)).encode())
    found = []
    for number, (unit_bytes, workers) in enumerate([(None, 1), (3000, 1), (3000, 2), (1, 1)]):
        inputs = InputSettings((str(tmp_path / "input.txt"),), split_documents=500)
        settings = BuildSettings(inputs, 0.2, unit_bytes)
        build_dataset(settings, tokenizer_path, tmp_path / str(number), workers)
        found.append(show_documents(tmp_path / str(number), "validation", 0, 1000, 10_000))
    assert found[0].count("---") > 10
    assert found[0] == found[1] == found[2] == found[3]


def test_progress_comes_to_the_bytes_of_the_input(tmp_path, tokenizer_path, corpus, monkeypatch):
    from card_scale.corpus import build

    told: list[int] = []
    monkeypatch.setattr(build.Progress, "update", lambda _self, size: told.append(size))
    for workers in (1, 2):
        told.clear()
        settings = BuildSettings(InputSettings((str(corpus),)), 0.2, unit_bytes=10_000)
        build_dataset(settings, tokenizer_path, tmp_path / str(workers), workers)
        assert sum(told) == sum(path.stat().st_size for path in corpus.iterdir())
        assert len(told) > 3


@pytest.mark.parametrize(
    "documents, tokens, message",
    [
        (0, 0, None),
        (11, 100_000, "only 11 documents with 100000 tokens, 97 samples of 1024.* standard error of 0.15"),
        (1000, 10_000, "only 1000 documents with 10000 tokens, 9 samples .* standard error of 0.02"),
        (100, 16 * 1024, None),
    ],
)
def test_a_small_validation_split_is_named(tmp_path, tokenizer_path, documents, tokens, message):
    each = [[7] * (tokens // documents - 1)] * (documents - 1) if documents else []
    last = [[7] * (tokens - sum(len(ids) + 1 for ids in each) - 1)] if documents else []
    directory = write_dataset(tmp_path / "data", tokenizer_path, 100, train=[[7]], validation=each + last)
    manifest = Manifest.load(directory)
    assert manifest.splits["validation"].tokens == tokens
    found = validation_warning(manifest)
    if message is None:
        assert found is None
    else:
        assert re.search(message, found)
