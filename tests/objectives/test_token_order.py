"""The orders of ARMD against lists that tokens are taken out of and put back into."""

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from card_scale.objectives import token_order
from tests.objectives import oracles


def longest_ascent(row):
    """Length of the longest ascending subsequence."""
    best = []
    for end, value in enumerate(row):
        best.append(1 + max((best[before] for before in range(end) if row[before] < value), default=0))
    return max(best)


@given(st.integers(1, 24), st.integers(0, 24), st.integers(0, 2**30))
def test_tokens_are_taken_out_and_put_back(length, count, seed):
    count = min(count, length)
    draws = torch.rand(2, 3, length, generator=torch.Generator().manual_seed(seed))
    orders = token_order.with_moved_tokens(*draws, count)
    assert orders.shape == (3, length)
    assert orders.dtype == torch.int64
    for row, order in enumerate(orders.tolist()):
        assert sorted(order) == list(range(length))
        assert order == oracles.order_with_moved_tokens(draws[0, row].tolist(), draws[1, row].tolist(), count)
        assert longest_ascent(order) >= length - count


@pytest.mark.parametrize("length, count", [(4, 1), (4, 2), (3, 3)])
def test_all_ways_to_move_tokens_are_equally_likely(length, count):
    """Chi-square against the enumeration of who leaves, which ranks are given, and who gets which."""
    expected = Counter()
    for moved in itertools.combinations(range(length), count):
        for ranks in itertools.permutations(range(length), count):
            row = [place for place in range(length) if place not in moved]
            for rank, token in sorted(zip(ranks, moved, strict=True)):
                row.insert(rank, token)
            expected[tuple(row)] += 1
    draws = torch.rand(2, 20_000, length, generator=torch.Generator().manual_seed(1))
    found = Counter(map(tuple, token_order.with_moved_tokens(*draws, count).tolist()))
    assert set(found) <= set(expected)
    total = sum(expected.values())
    observed = [found[order] for order in expected]
    chances = [20_000 * ways / total for ways in expected.values()]
    assert stats.chisquare(observed, chances).pvalue > 1e-4


@given(st.integers(0, 40), st.integers(0, 50), st.integers(0, 50))
def test_the_number_of_moved_tokens_grows_from_one_to_the_most(most, begin, ramp):
    counts = [token_order.moved_tokens(update, most, begin, begin + ramp) for update in range(begin + ramp + 3)]
    assert counts[:begin] == [0] * begin
    assert counts[begin + ramp :] == [most] * 3
    during = counts[begin : begin + ramp]
    assert during == sorted(during)
    if during and most:
        assert during[0] == 1
        # Linear: no step is larger than the slope asks for.
        steps = [after - before for before, after in itertools.pairwise([*during, most])]
        assert max(steps) <= -(-(most - 1) // ramp)


def test_the_paper_example_of_a_strided_order():
    order = token_order.strided(2, 8, 2, torch.device("cpu"))
    assert (order + 1).tolist() == [[1, 5, 2, 6, 3, 7, 4, 8]] * 2
    assert token_order.strided(1, 6, 1, torch.device("cpu")).tolist() == [[0, 1, 2, 3, 4, 5]]
    assert token_order.strided(1, 6, 6, torch.device("cpu")).tolist() == [[0, 1, 2, 3, 4, 5]]
    with pytest.raises(ValueError, match="3 streams do not divide 8 tokens"):
        token_order.strided(1, 8, 3, torch.device("cpu"))
