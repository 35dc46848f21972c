import dataclasses
import json
import os
import random
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from card_scale.corpus import decontamination
from card_scale.corpus.build import BuildSettings, build_dataset
from card_scale.corpus.decontamination import DecontaminationSettings, decontaminate, measure_overlap
from card_scale.corpus.sources import InputSettings
from card_scale.corpus.tokenizer_training import train_tokenizer
from card_scale.corpus.units import split_of
from card_scale.corpus.verify import verify_dataset
from card_scale.data.manifest import Manifest
from card_scale.data.stream import PackedStream
from card_scale.data.tokenizer import EOS_ID, Tokenizer
from card_scale.errors import ConfigurationError, DataError
from tests.corpora import make_texts, write_dataset
from tests.corpus.test_build import contents

FIRST = 261  # ids from here on are pieces of characters
RULE = DecontaminationSettings()


def normal_form(tokenizer, ids):
    return "".join(tokenizer.decode(ids).lower().split())


def brute_force(tokenizer, train, validation, n):
    """Every n-gram of every validation document compared with every one of train; every pair of documents."""
    rows = []
    for ids in validation:
        grams = [ids[i : i + n] for i in range(len(ids) - n + 1)]
        shared = [gram for gram in grams if any(gram == other[i : i + n] for other in train for i in range(len(other)))]
        copy = any(normal_form(tokenizer, ids) == normal_form(tokenizer, other) for other in train)
        rows.append((len(grams), len(shared), copy))
    return rows


def measured(directory, against, n, workers=1):
    overlap = measure_overlap(directory, against, n, workers)
    return list(zip(*(part.tolist() for part in overlap), strict=True))


IDS = st.lists(st.integers(FIRST, FIRST + 2), max_size=12)


@given(st.lists(IDS, min_size=1, max_size=6), st.lists(IDS, min_size=1, max_size=5), st.sampled_from([1, 2, 3, 5, 13]))
@hypothesis_settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
def test_overlap_is_that_of_all_pairs(tmp_path_factory, tokenizer_path, train, validation, n):
    directory = tmp_path_factory.mktemp("pairs") / "data"
    write_dataset(directory, tokenizer_path, 2, train=train, validation=validation)
    assert measured(directory, [directory], n) == brute_force(Tokenizer.load(tokenizer_path), train, validation, n)


@given(st.integers(0, 40), st.integers(0, 40), st.booleans(), st.floats(0.01, 1.0))
def test_the_rule(ngrams, shared, copy, threshold):
    shared = min(shared, ngrams)
    overlap = decontamination.Overlap(np.array([ngrams]), np.array([shared]), np.array([copy]))
    assert overlap.contaminated(threshold).tolist() == [copy or (ngrams > 0 and shared >= threshold * ngrams)]


def held_out(text):
    """The text, ended by a number with which it falls to validation at a fraction of 0.25."""
    return next(
        changed for number in range(1000) if split_of((changed := f"{text} {number}").encode(), 0.25) == "validation"
    )


@pytest.fixture(scope="module")
def planted(tmp_path_factory, tokenizer_path):
    """A dataset built from texts, and its contaminated validation texts: copies and near copies of train's."""
    generator = random.Random(4)
    vocabulary = ["".join(generator.choices("abcdefghij", k=6)) for _ in range(5000)]
    originals = [" ".join(generator.choices(vocabulary, k=120)) for _ in range(60)]
    train = [text for text in originals if split_of(text.encode(), 0.25) == "train"]
    clean = [text for text in originals if split_of(text.encode(), 0.25) == "validation"]
    contaminated, shares_little = [], []
    for number, text in enumerate(train[:9]):
        words = text.split()
        if number < 3:
            shape = next(
                shape
                for indent in range(1, 1000)
                if split_of((shape := text.upper().replace(" ", "\r\n" + " " * indent)).encode(), 0.25) == "validation"
            )
            contaminated.append(shape)
        elif number < 6:
            contaminated.append(held_out(" ".join(words[:90] + generator.choices(vocabulary, k=30))))
        else:
            shares_little.append(held_out(" ".join(words[:30] + generator.choices(vocabulary, k=90))))
    directory = tmp_path_factory.mktemp("planted")
    (directory / "in").mkdir()
    texts = train + clean + contaminated + shares_little
    generator.shuffle(texts)
    for number, text in enumerate(texts):
        (directory / "in" / f"{number:03d}.txt").write_bytes(text.encode())
    settings = BuildSettings(InputSettings((str(directory / "in"),)), 0.25, unit_bytes=9000, shard_bytes=8000)
    build_dataset(settings, tokenizer_path, directory / "data", 1)
    return directory / "data", contaminated, clean + shares_little


@pytest.fixture
def copy(planted, tmp_path):
    return shutil.copytree(planted[0], tmp_path / "copy")


def validation_texts(directory, tokenizer_path):
    stream = PackedStream(directory, "validation", 0, 1)
    tokens = stream.samples(np.arange(stream.sample_count))
    flat = [int(tokens[0, 0]), *tokens[:, 1].tolist()]
    tokenizer = Tokenizer.load(tokenizer_path)
    documents, begin = [], 0
    for place, token in enumerate(flat):
        if token == EOS_ID:
            documents.append(tokenizer.decode(flat[begin:place]))
            begin = place + 1
    assert begin == len(flat)
    return documents


def test_planted_documents_are_excluded_and_no_others(copy, planted, tokenizer_path):
    before = validation_texts(copy, tokenizer_path)
    train = PackedStream(copy, "train", 3, 16)
    samples = train.samples(np.arange(train.sample_count))
    record = decontaminate(copy, [copy], RULE, workers=1)
    _, contaminated, clean = planted
    after = validation_texts(copy, tokenizer_path)
    assert sorted(before) == sorted(contaminated + clean)
    assert sorted(after) == sorted(clean)
    assert after == [text for text in before if text in clean]  # what remains keeps its order
    assert (record.copies, record.excluded_documents) == (3, len(contaminated))
    own = Tokenizer.load(tokenizer_path)
    assert record.excluded_tokens == sum(len(own.encode(text)) + 1 for text in contaminated)
    assert (record.documents_by_share["0.1"], record.documents_by_share["0.5"]) == (6, 3)  # other cases, other tokens
    again = PackedStream(copy, "train", 3, 16)
    assert again.token_count == train.token_count
    assert (again.samples(np.arange(train.sample_count)) == samples).all()
    assert verify_dataset(copy) == []


def test_a_validation_set_is_held_out_from_what_it_was_compared_with_alone(copy, planted, tmp_path):
    before = Manifest.load(copy)
    assert not before.held_out_from(before)
    other = shutil.copytree(planted[0], tmp_path / "other")
    decontaminate(copy, [copy], RULE, workers=1)
    after = Manifest.load(copy)
    assert after.held_out_from(after)
    assert after.held_out_from(Manifest.load(other))  # the same train documents, wherever they stand
    assert not Manifest.load(other).held_out_from(after)
    split = dataclasses.replace(before.splits["train"], documents=before.splits["train"].documents - 1)
    fewer = dataclasses.replace(before, splits={**before.splits, "train": split})
    assert not after.held_out_from(fewer)


def test_two_workers_do_the_same(copy, planted, tmp_path):
    other = shutil.copytree(planted[0], tmp_path / "other")
    decontaminate(copy, [copy], RULE, workers=1)
    decontaminate(other, [other], RULE, workers=2)
    assert contents(copy) == contents(other)


def test_a_second_call_reads_and_writes_nothing(copy, monkeypatch):
    record = decontaminate(copy, [copy], RULE, workers=1)
    before = contents(copy)
    monkeypatch.setattr(decontamination, "measure_overlap", None)
    assert decontaminate(copy, [copy], RULE, workers=1) == record
    assert contents(copy) == before


def test_another_rule_replaces_the_first(copy):
    strict = decontaminate(copy, [copy], DecontaminationSettings(threshold=0.1), workers=1)
    usual = decontaminate(copy, [copy], RULE, workers=1)
    assert strict.excluded_documents == usual.excluded_documents + 3
    assert Manifest.load(copy).decontamination == usual
    assert not (copy / strict.excluded.name).exists()
    assert verify_dataset(copy) == []


def test_an_interruption_leaves_the_dataset_as_it_was(copy, tokenizer_path, monkeypatch):
    decontaminate(copy, [copy], DecontaminationSettings(threshold=0.1), workers=1)
    before = validation_texts(copy, tokenizer_path)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Manifest, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decontaminate(copy, [copy], RULE, workers=1)
    monkeypatch.undo()
    assert validation_texts(copy, tokenizer_path) == before
    assert ["never read" in problem for problem in verify_dataset(copy)] == [True]
    decontaminate(copy, [copy], RULE, workers=1)
    assert verify_dataset(copy) == []


def test_a_clean_dataset_loses_nothing(dataset, tmp_path):
    """Nor does its digest change: what is trained on and evaluated is the same."""
    directory = shutil.copytree(dataset, tmp_path / "data")
    record = decontaminate(directory, [directory], DecontaminationSettings(threshold=1.0), workers=1)
    assert (record.excluded_documents, record.copies) == (0, 0)
    before, after = PackedStream(dataset, "validation", 0, 8), PackedStream(directory, "validation", 0, 8)
    assert after.sample_count == before.sample_count
    assert after.manifest.digest == before.manifest.digest


def test_the_digest_tells_what_is_excluded(copy):
    digests = {Manifest.load(copy).digest}
    for threshold in (0.5, 0.1):
        decontaminate(copy, [copy], DecontaminationSettings(threshold=threshold), workers=1)
        digests.add(Manifest.load(copy).digest)
    assert len(digests) == 3


def test_a_dataset_without_it_is_as_before(dataset):
    content = json.loads((dataset / "manifest.json").read_bytes())
    assert "decontamination" not in content
    assert Manifest.load(dataset).decontamination is None


def damage_record(directory):
    path = directory / "manifest.json"
    content = json.loads(path.read_bytes())
    content["decontamination"]["excluded_documents"] -= 1
    path.write_text(json.dumps(content))
    return "manifest.json"


def damage_list(kind):
    def damage(directory):
        path = directory / Manifest.load(directory).decontamination.excluded.name
        if kind == "missing":
            path.unlink()
        elif kind == "truncated":
            os.truncate(path, path.stat().st_size - 8)
        else:
            content = bytearray(path.read_bytes())
            content[-8] ^= 1
            path.write_bytes(content)
        return path.name

    return damage


@pytest.mark.parametrize(
    "damage", [damage_record, damage_list("missing"), damage_list("truncated"), damage_list("flipped")]
)
def test_a_damaged_exclusion_is_refused(copy, damage):
    decontaminate(copy, [copy], RULE, workers=1)
    name = damage(copy)
    with pytest.raises(DataError, match=name):
        PackedStream(copy, "validation", 0, 16)
    if name != "manifest.json":
        assert any(name in problem for problem in verify_dataset(copy))


@pytest.mark.parametrize("wrong", [[0, 99], [1, 0], [1, 1], [-1, 0], [0.0, 1.0], [1]])
def test_a_list_that_fits_its_hash_but_not_the_split_is_refused(copy, wrong):
    record = decontaminate(copy, [copy], RULE, workers=1)
    file = decontamination._write_excluded(copy, np.array(wrong))
    forged = dataclasses.replace(record, excluded=file, excluded_documents=2)
    dataclasses.replace(Manifest.load(copy), decontamination=forged).save(copy)
    with pytest.raises(DataError, match=f"{file.name}.*2 of"):
        PackedStream(copy, "validation", 0, 16)


@pytest.fixture
def documents():
    generator = random.Random(8)
    return [[generator.randrange(FIRST, 400) for _ in range(40)] for _ in range(12)]


def test_other_train_splits_are_compared_with(tmp_path, tokenizer_path, documents):
    held = write_dataset(tmp_path / "held", tokenizer_path, 3, train=documents[:2], validation=documents[1:6])
    first = write_dataset(tmp_path / "first", tokenizer_path, 1, train=[documents[8], documents[3]])
    second = write_dataset(tmp_path / "second", tokenizer_path, 9, train=[documents[5][:20] + documents[9]])
    for against, expected in (
        ([held], [0]),
        ([first], [2]),
        ([second], []),
        ([first, second], [2]),
        ([held, first, second], [0, 2]),
    ):
        record = decontaminate(held, against, RULE, workers=1)
        assert np.load(held / record.excluded.name).tolist() == expected
        assert [train.documents for train in record.against] == [
            Manifest.load(path).splits["train"].documents for path in against
        ]
    record = decontaminate(held, [first, second], DecontaminationSettings(threshold=8 / 28), workers=1)
    assert np.load(held / record.excluded.name).tolist() == [2, 4]  # 20 shared tokens hold 8 of its 28 13-grams
    assert PackedStream(held, "train", 0, 4).token_count == 82


def test_documents_are_counted_from_a_share_on(tmp_path, tokenizer_path, documents):
    """Ten 13-grams in 22 tokens: the first 13 + k of them in train are k + 1 of the ten, a tenth, a fifth, a half."""
    held = [document[:22] for document in documents[:4]]
    train = [held[0][:13], held[1][:14], held[2][:17], documents[9]]
    directory = write_dataset(tmp_path / "data", tokenizer_path, 2, train=train, validation=held)
    record = decontaminate(directory, [directory], RULE, workers=1)
    assert record.documents_by_share == {"any": 3, "0.1": 3, "0.2": 2, "0.5": 1, "0.8": 0}
    assert (record.documents, record.ngrams, record.shared_ngrams, record.excluded_documents) == (4, 40, 8, 1)


def test_what_cannot_be_compared_is_refused(tmp_path, tokenizer_path, documents):
    held = write_dataset(tmp_path / "held", tokenizer_path, 3, train=documents[:6], validation=documents[4:6])
    before = contents(held)
    with pytest.raises(DataError, match=r"all 2 validation documents are contaminated \(2 copies.*nothing was written"):
        decontaminate(held, [held], RULE, workers=1)
    with pytest.raises(DataError, match="no such file"):
        decontaminate(held, [tmp_path / "nowhere"], RULE, workers=1)
    only_held = write_dataset(tmp_path / "only", tokenizer_path, 3, validation=documents)
    with pytest.raises(DataError, match="the train split has no documents"):
        decontaminate(held, [only_held], RULE, workers=1)
    only_train = write_dataset(tmp_path / "train", tokenizer_path, 3, train=documents)
    with pytest.raises(DataError, match="the validation split has no documents"):
        decontaminate(only_train, [held], RULE, workers=1)
    other_tokenizer = tmp_path / "other.model"
    other_tokenizer.write_bytes(train_tokenizer(make_texts(60, seed=5), 400))
    foreign = write_dataset(tmp_path / "foreign", other_tokenizer, 3, train=documents)
    with pytest.raises(DataError, match="another tokenizer"):
        decontaminate(held, [foreign], RULE, workers=1)
    assert contents(held) == before


def test_a_stream_that_is_too_short_says_why(tmp_path, tokenizer_path, documents):
    held = write_dataset(
        tmp_path / "held", tokenizer_path, 3, train=documents[:3], validation=[documents[0], documents[7]]
    )
    decontaminate(held, [held], RULE, workers=1)
    assert PackedStream(held, "validation", 0, 40).sample_count == 1
    with pytest.raises(DataError, match="has 41 tokens outside its 1 contaminated documents, one sample"):
        PackedStream(held, "validation", 0, 41)
    with pytest.raises(ConfigurationError, match="41 tokens outside its 1 contaminated documents"):
        PackedStream(held, "validation", 0, 8, unique_tokens=50)


def test_damage_met_while_reading_train_is_an_error(copy):
    shard = Manifest.load(copy).splits["train"].shards[-1]
    content = bytearray((copy / shard.name).read_bytes())
    content[3 * 512 + 130] ^= 1
    (copy / shard.name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{shard.name}.*damaged"):
        decontaminate(copy, [copy], RULE, workers=1)
    assert Manifest.load(copy).decontamination is None
