import random
import shutil

import numpy as np
import pytest

from card_scale.corpus import near_duplicates as module
from card_scale.corpus.decontamination import DecontaminationSettings, decontaminate
from card_scale.corpus.near_duplicates import BINS, NearDuplicates, near_duplicates, signatures, similarity
from card_scale.corpus.tokenizer_training import train_tokenizer
from card_scale.data.documents import Documents
from card_scale.data.manifest import Manifest, load_excluded
from card_scale.errors import DataError
from tests.corpora import make_texts, write_dataset

FIRST, LAST = 5, 400


def random_ids(generator, count):
    return [generator.randrange(FIRST, LAST) for _ in range(count)]


def grams(ids):
    return {tuple(ids[i : i + 5]) for i in range(len(ids) - 4)}


def jaccard(one, other):
    one, other = grams(one), grams(other)
    return len(one & other) / len(one | other)


def signature_of(ids):
    return signatures(Documents(np.zeros(1, dtype=np.int64), np.array(ids, dtype="<u2"), np.array([len(ids)])))[0]


def changed_at_the_end(generator, ids, share):
    """The same but for a last part: the Jaccard index falls to about (1 - share) / (1 + share)."""
    count = round(len(ids) * share)
    return ids[: len(ids) - count] + random_ids(generator, count)


@pytest.mark.parametrize("length", [30, 150, 1500])
@pytest.mark.parametrize("share", [0.03, 0.11, 0.4])
def test_the_estimate_is_unbiased_with_the_stated_error(length, share):
    generator = random.Random(length)
    errors = []
    for _ in range(200):
        one = random_ids(generator, length)
        other = changed_at_the_end(generator, one, share)
        estimate = similarity(signature_of(one)[None], signature_of(other)[None])[0]
        errors.append(estimate - jaccard(one, other))
    assert abs(np.mean(errors)) < 4 * np.std(errors) / np.sqrt(len(errors)) + 1e-12
    true = (1 - share) / (1 + share)
    assert np.std(errors) < 1.2 * np.sqrt(true * (1 - true) / BINS)


def test_signatures_are_those_of_a_loop():
    generator = random.Random(2)
    parts = [random_ids(generator, count) for count in (0, 3, 4, 5, 9, 300)]
    flat = np.array([token for ids in parts for token in ids], dtype="<u2")
    found = signatures(Documents(np.arange(6), flat, np.cumsum([len(part) for part in parts])))
    for ids, signature in zip(parts, found.tolist(), strict=True):
        expected = [2**32 - 1] * BINS
        for begin in range(len(ids) - 4):
            value = int(module.document_ngrams(Documents(
                np.zeros(1), np.array(ids[begin : begin + 5], dtype="<u2"), np.array([5])), 5)[0][0])  # fmt: skip
            place = (value >> 32) * BINS >> 32
            expected[place] = min(expected[place], value & 0xFFFFFFFF)
        assert signature == expected
    assert similarity(found[:1], found[1:2]).tolist() == [0.0]  # nothing in common: nothing at all


@pytest.fixture(scope="module")
def planted():
    """Documents whose similarities are all far from 0.8, in a random order."""
    generator = random.Random(6)
    documents = [random_ids(generator, generator.choice([12, 80, 600])) for _ in range(30)]
    for source, share in ((0, 0.0), (0, 0.0), (1, 0.0), (2, 0.03), (3, 0.03), (3, 0.02), (4, 0.5), (5, 0.3)):
        long = documents[source] if len(documents[source]) > 12 or not share else random_ids(generator, 200)
        documents[source] = long
        documents.append(changed_at_the_end(generator, long, share))
    documents += [[], [7, 8], [7, 8], [9] * 40, [9] * 90]  # the last two have one and the same 5-gram
    generator.shuffle(documents)
    return documents


def brute_force(documents, others=None):
    """Which documents have a Jaccard index of 0.8 with another (by default with an earlier one), by all pairs."""
    flags = []
    for number, ids in enumerate(documents):
        similarities = [
            jaccard(ids, other)
            for other in (documents[:number] if others is None else others)
            if len(ids) >= 5 and len(other) >= 5
        ]
        assert all(not 0.65 < value < 0.93 for value in similarities)
        flags.append(any(value >= 0.8 for value in similarities))
    return flags


def expected_rate(documents, flags):
    compared = [(len(ids) + 1, flag) for ids, flag in zip(documents, flags, strict=True) if len(ids) >= 5]
    duplicates = sum(flag for _, flag in compared)
    tokens = sum(count for count, flag in compared if flag) / sum(count for count, _ in compared)
    share = duplicates / len(compared)
    return NearDuplicates(len(documents), len(documents), len(compared), duplicates, share, 0.0, tokens)


@pytest.mark.parametrize("workers, shard_documents, pairs", [(1, 5, 1 << 16), (1, 100, 1), (1, 1, 7), (2, 9, 1 << 16)])
def test_the_rate_within_train_is_that_of_all_pairs(
    tmp_path, tokenizer_path, planted, workers, shard_documents, pairs, monkeypatch
):
    monkeypatch.setattr(module, "_PAIRS", pairs)
    directory = write_dataset(tmp_path / "data", tokenizer_path, shard_documents, train=planted)
    expected = expected_rate(planted, brute_force(planted))
    assert expected.duplicates == 7
    assert near_duplicates(directory, "train", None, 10**6, workers) == expected


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_rate_of_validation_is_that_of_all_pairs_with_train(tmp_path, tokenizer_path, planted, elsewhere):
    train, validation = planted[:25], planted[25:]
    expected = expected_rate(validation, brute_force(validation, train))
    assert expected.duplicates > 0
    own = [] if elsewhere else train
    directory = write_dataset(tmp_path / "data", tokenizer_path, 4, train=own, validation=validation)
    other = write_dataset(tmp_path / "other", tokenizer_path, 7, train=train) if elsewhere else None
    assert near_duplicates(directory, "validation", other, 10**6, 1) == expected


def test_documents_that_decontamination_excluded_are_not_asked_about(tmp_path, tokenizer_path, planted):
    train, validation = planted[:25], planted[25:]
    directory = write_dataset(tmp_path / "data", tokenizer_path, 4, train=train, validation=validation)
    record = decontaminate(directory, [directory], DecontaminationSettings(ngram=5), workers=1)
    excluded = set(load_excluded(directory, Manifest.load(directory), "validation").tolist())
    assert 0 < len(excluded) == record.excluded_documents < len(validation)
    flags = [flag for number, flag in enumerate(brute_force(validation, train)) if number not in excluded]
    left = [ids for number, ids in enumerate(validation) if number not in excluded]
    assert near_duplicates(directory, "validation", None, 10**6, 1) == expected_rate(left, flags)


def test_all_but_one_of_equal_documents_repeat_an_earlier_one(tmp_path, tokenizer_path):
    ids = random_ids(random.Random(1), 50)
    directory = write_dataset(tmp_path / "data", tokenizer_path, 3, train=[ids] * 10)
    found = near_duplicates(directory, "train", None, 100, 1)
    assert (found.duplicates, found.share, found.token_share) == (9, 0.9, 0.9)


def test_a_sample_is_compared_with_all_of_train(tmp_path, tokenizer_path):
    """Its rate estimates the whole's; had train been sampled as well, few pairs would have remained."""
    generator = random.Random(3)
    documents = [random_ids(generator, 30) for _ in range(200)]
    documents += documents[:100]
    generator.shuffle(documents)
    directory = write_dataset(tmp_path / "data", tokenizer_path, 50, train=documents)
    whole = near_duplicates(directory, "train", None, 300, 1)
    assert (whole.share, whole.standard_error) == (1 / 3, 0)
    part = near_duplicates(directory, "train", None, 100, 1)
    assert part == near_duplicates(directory, "train", None, 100, 1)
    assert (part.documents, part.sampled, part.compared) == (300, 100, 100)
    assert part.standard_error == pytest.approx(np.sqrt(part.share * (1 - part.share) / 100 * 200 / 299))
    assert abs(part.share - 1 / 3) < 4 * part.standard_error


def test_documents_too_short_to_compare_give_a_rate_of_nothing(tmp_path, tokenizer_path):
    directory = write_dataset(tmp_path / "data", tokenizer_path, 3, train=[[7, 8], [7, 8]])
    assert near_duplicates(directory, "train", None, 10, 1) == NearDuplicates(2, 2, 0, 0, 0.0, 0.0, 0.0)


def test_what_cannot_be_compared_is_refused(tmp_path, tokenizer_path, dataset):
    empty = write_dataset(tmp_path / "empty", tokenizer_path, 3, train=[[7] * 9])
    with pytest.raises(DataError, match="no documents to compare"):
        near_duplicates(empty, "validation", None, 10, 1)
    other_tokenizer = tmp_path / "other.model"
    other_tokenizer.write_bytes(train_tokenizer(make_texts(60, seed=5), 400))
    foreign = write_dataset(tmp_path / "foreign", other_tokenizer, 3, train=[[7] * 9])
    with pytest.raises(DataError, match="different tokenizers"):
        near_duplicates(dataset, "validation", foreign, 10, 1)
    damaged = shutil.copytree(dataset, tmp_path / "damaged")
    shard = Manifest.load(damaged).splits["train"].shards[0]
    (damaged / shard.name).unlink()
    with pytest.raises(DataError, match=shard.name):
        near_duplicates(damaged, "train", None, 10, 1)
