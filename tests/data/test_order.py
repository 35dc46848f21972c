import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from card_scale.data.order import document_order, epoch_order, evenly_spread, locate, rank_places
from card_scale.errors import ConfigurationError

SEEDS = st.integers(0, 2**63)


@given(SEEDS, st.integers(0, 10**6), st.integers(0, 300))
def test_an_epoch_visits_every_sample_once(seed, epoch, count):
    order = epoch_order(seed, epoch, count)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(count))
    assert (order == epoch_order(seed, epoch, count)).all()


@given(SEEDS, st.integers(0, 1000), st.integers(0, 1000))
def test_epochs_seeds_and_documents_have_orders_of_their_own(seed, epoch, other):
    order = epoch_order(seed, epoch, 200).tolist()
    assert order != document_order(seed, 200).tolist()
    assert order != epoch_order(seed + 1, epoch, 200).tolist()
    assert (order == epoch_order(seed, other, 200).tolist()) == (epoch == other)


def test_every_place_is_equally_likely():
    counts = np.zeros((8, 8))
    for epoch in range(4000):
        counts[np.arange(8), epoch_order(7, epoch, 8)] += 1
    assert abs(counts / 4000 - 1 / 8).max() < 5 * np.sqrt(1 / 8 * 7 / 8 / 4000)


def test_the_orders_never_change():
    """A resumed run relies on them: a change here would train on other samples than the run began with."""
    assert epoch_order(1, 0, 10).tolist() == [2, 3, 0, 7, 4, 1, 8, 5, 9, 6]
    assert epoch_order(1, 3, 10).tolist() == [9, 3, 5, 2, 6, 1, 7, 4, 8, 0]
    assert document_order(1, 10).tolist() == [2, 1, 0, 8, 6, 5, 9, 7, 3, 4]


def test_negative_arguments_are_refused():
    with pytest.raises(ValueError, match="seed -1"):
        epoch_order(-1, 0, 3)


@given(st.lists(st.integers(0, 10**12), min_size=1), st.integers(1, 10**6))
def test_locate_divides(positions, count):
    epochs, places = locate(np.array(positions), count)
    assert [epoch * count + place for epoch, place in zip(epochs.tolist(), places.tolist(), strict=True)] == positions
    assert all(0 <= place < count for place in places.tolist())


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 6))
def test_rank_places_follow_the_definition_and_partition_the_batch(micro_batches, micro_batch, size):
    global_batch = micro_batches * micro_batch * size
    seen = []
    for rank in range(size):
        expected = []
        for micro in range(micro_batches):
            first = (micro * size + rank) * micro_batch
            expected += range(first, first + micro_batch)
        places = rank_places(global_batch, micro_batch, rank, size).tolist()
        assert places == expected
        seen += places
    assert sorted(seen) == list(range(global_batch))


@pytest.mark.parametrize(
    "arguments, message",
    [((12, 5, 0, 1), "12.*5"), ((12, 2, 3, 3), "rank 3"), ((0, 1, 0, 1), "at least 1"), ((8, 4, 0, 3), "x.*3.*= 12")],
)
def test_impossible_sizes_are_named(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        rank_places(*arguments)


@given(st.integers(0, 10**12), st.integers(1, 300))
def test_some_samples_are_spread_over_all(total, count):
    count = min(count, total)
    chosen = evenly_spread(count, total).tolist()
    assert chosen == [number * total // count for number in range(count)]
    if 0 < count <= total:
        assert chosen[0] == 0
        gaps = {after - before for before, after in zip(chosen, [*chosen[1:], total], strict=True)}
        assert gaps <= {total // count, -(-total // count)}


def test_all_samples_are_all_and_more_are_refused():
    assert evenly_spread(7, 7).tolist() == list(range(7))
    with pytest.raises(ValueError, match="from 0 to 7, got 8"):
        evenly_spread(8, 7)
