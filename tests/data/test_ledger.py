"""What a run trains on, position by position: nested subsets of documents, true epochs, one order for every layout.

A ledger maps each global position (step * global batch + place) to the sample id, the epoch and the tokens there.
"""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from card_scale.data.loader import GlobalBatchLoader
from card_scale.data.order import document_order
from card_scale.data.stream import PackedStream
from card_scale.data.tokenizer import EOS_ID
from tests.corpus.test_build import read_documents

LENGTH = 32
GLOBAL_BATCH = 12


@pytest.fixture(scope="module")
def documents(dataset):
    """The train documents in the order of the index, read by tarfile."""
    return read_documents(dataset, "train")


def subset_documents(dataset, seed, unique_tokens):
    """The subset's documents as the stream gives them; the last one may be cut."""
    stream = PackedStream(dataset, "train", seed, 1, unique_tokens)
    samples = stream.samples(np.arange(stream.sample_count))
    tokens = [int(samples[0, 0]), *samples[:, 1].tolist()]
    assert len(tokens) == unique_tokens
    found, begin = [], 0
    for place, token in enumerate(tokens):
        if token == EOS_ID:
            found.append(tokens[begin : place + 1])
            begin = place + 1
    return [*found, tokens[begin:]] if begin < len(tokens) else found


@given(st.data(), st.integers(0, 2**40))
@hypothesis_settings(max_examples=15)
def test_a_larger_subset_holds_the_documents_of_a_smaller_one_first(dataset, documents, data, seed):
    total = sum(map(len, documents))
    small, large = sorted((data.draw(st.integers(2, total)), data.draw(st.integers(2, total))))
    few, many = subset_documents(dataset, seed, small), subset_documents(dataset, seed, large)
    chosen = [documents[number] for number in document_order(seed, len(documents))]
    for found in (few, many):
        assert found[:-1] == chosen[: len(found) - 1]
        assert found[-1] == chosen[len(found) - 1][: len(found[-1])]
    assert many[: len(few) - 1] == few[:-1]
    assert many[len(few) - 1][: len(few[-1])] == few[-1]


@given(st.data(), st.integers(0, 2**40))
@hypothesis_settings(max_examples=15)
def test_the_samples_of_a_smaller_subset_are_those_of_a_larger_one(dataset, documents, data, seed):
    total = sum(map(len, documents))
    small, large = sorted(data.draw(st.integers(LENGTH + 1, total)) for _ in range(2))
    few = PackedStream(dataset, "train", seed, LENGTH, small)
    many = PackedStream(dataset, "train", seed, LENGTH, large)
    ids = np.arange(few.sample_count)
    assert few.sample_count <= many.sample_count
    assert (few.samples(ids) == many.samples(ids)).all()


def test_another_seed_chooses_other_documents(dataset, documents):
    half = sum(map(len, documents)) // 2
    subsets = [frozenset(map(tuple, subset_documents(dataset, seed, half)[:-1])) for seed in range(5)]
    assert len(set(subsets)) == 5
    for subset in subsets:
        assert subset <= set(map(tuple, documents))


def ledger(dataset, steps, *, unique_tokens=None, size=1, micro_batch=1, stops=(), seed=9, reshuffle=True):
    """The ledger of ``steps`` updates by ``size`` ranks, which close and open everything again at each of ``stops``."""
    entries = {}
    bounds = [0, *stops, steps]
    for begin, end in itertools.pairwise(bounds):
        for rank in range(size):
            stream = PackedStream(dataset, "train", seed, LENGTH, unique_tokens)
            with GlobalBatchLoader(
                stream,
                global_batch=GLOBAL_BATCH,
                micro_batch=micro_batch,
                data_parallel_rank=rank,
                data_parallel_size=size,
                seed=seed,
                reshuffle=reshuffle,
            ) as loader:
                for step in range(begin, end):
                    batch = loader.rank_batch(step)
                    for position, sample_id, epoch, tokens in zip(
                        batch.global_positions.tolist(),
                        batch.sample_ids.tolist(),
                        batch.epochs.tolist(),
                        map(tuple, batch.tokens.tolist()),
                        strict=True,
                    ):
                        assert position not in entries
                        entries[position] = (sample_id, epoch, tokens)
    assert sorted(entries) == list(range(steps * GLOBAL_BATCH))
    return entries


SUBSET = 10 * LENGTH + 5  # 10 samples, so that every other batch straddles epochs
STEPS = 10  # 12 epochs


@pytest.mark.parametrize("reshuffle", [True, False])
def test_every_epoch_visits_every_sample_once(dataset, reshuffle):
    entries = ledger(dataset, STEPS, unique_tokens=SUBSET, reshuffle=reshuffle)
    visits = Counter((epoch, sample_id) for sample_id, epoch, _ in entries.values())
    assert visits == Counter((epoch, sample_id) for epoch in range(12) for sample_id in range(10))
    assert [entries[position][1] for position in range(120)] == [position // 10 for position in range(120)]
    assert len({tokens for _, _, tokens in entries.values()}) == 10
    orders = {tuple(entries[10 * epoch + place][0] for place in range(10)) for epoch in range(12)}
    assert len(orders) == (12 if reshuffle else 1)


@pytest.mark.parametrize("reshuffle", [True, False])
def test_a_longer_run_begins_with_the_shorter_one(dataset, reshuffle):
    options = {"unique_tokens": SUBSET, "reshuffle": reshuffle}
    long = ledger(dataset, STEPS, **options)
    for steps in (1, 5, 9):
        assert ledger(dataset, steps, **options) == {place: long[place] for place in range(steps * GLOBAL_BATCH)}


@pytest.mark.parametrize("size, micro_batch, stops", [
    (1, 12, ()), (2, 1, ()), (3, 2, ()), (12, 1, ()), (1, 1, (1, 5, 6)), (4, 3, (3,)), (6, 1, (2, 9)),
])  # fmt: skip
@pytest.mark.parametrize("unique_tokens", [SUBSET, None])
def test_layouts_and_resumes_train_on_the_same(dataset, size, micro_batch, stops, unique_tokens):
    expected = ledger(dataset, STEPS, unique_tokens=unique_tokens)
    found = ledger(dataset, STEPS, unique_tokens=unique_tokens, size=size, micro_batch=micro_batch, stops=stops)
    assert found == expected


def test_subsets_of_one_seed_share_their_samples_and_not_their_order(dataset):
    """An epoch permutes the subset's own samples, so the order within an epoch is the subset's own as well."""
    small = ledger(dataset, STEPS, unique_tokens=SUBSET)
    large = ledger(dataset, STEPS, unique_tokens=2 * SUBSET)
    of_sample = {sample_id: tokens for sample_id, _, tokens in large.values()}
    assert all(of_sample[sample_id] == tokens for sample_id, _, tokens in small.values())
    assert [small[place][0] for place in range(10)] != [large[place][0] for place in range(10)]
