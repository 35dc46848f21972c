"""Dropout as a function of (sample, epoch, layer, position, feature): its rate, and what it depends on."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from card_scale.model.dropout import dropout

KEY = st.integers(0, 2**32 - 1)


def keys(*rows):
    return torch.tensor(rows, dtype=torch.int64)


def kept(shape, keys_, probability, site=0, first_position=0):
    """Return which units of ones [positions, B, hidden] survive."""
    return dropout(torch.ones(shape), keys_, probability, site=site, first_position=first_position) != 0


def test_nothing_is_dropped_without_keys_or_at_probability_zero():
    states = torch.randn(3, 2, 4)
    assert dropout(states, None, 0.5, site=0, first_position=0) is states
    assert dropout(states, keys((1, 2), (3, 4)), 0.0, site=0, first_position=0) is states


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_rate_and_scale(probability):
    states = torch.randn(256, 4, 64)
    result = dropout(states, keys((1, 2), (3, 4), (1, 4), (0, 0)), probability, site=3, first_position=0)
    dropped = result == 0
    deviation = math.sqrt(probability * (1 - probability) / states.numel())
    assert abs(dropped.double().mean().item() - probability) < 5 * deviation
    torch.testing.assert_close(result[~dropped], states[~dropped] / (1 - probability))
    # Every sample, position and feature has the rate, none is favoured.
    for dimensions, count in (((0, 2), 256 * 64), ((1, 2), 4 * 64), ((0, 1), 256 * 4)):
        shares = dropped.double().mean(dimensions)
        assert (shares - probability).abs().max() < 6 * math.sqrt(probability * (1 - probability) / count)


def test_the_gradient_is_dropped_with_the_unit():
    states = torch.randn(8, 2, 16, requires_grad=True)
    result = dropout(states, keys((1, 2), (3, 4)), 0.3, site=0, first_position=0)
    result.sum().backward()
    assert torch.equal(states.grad == 0, result == 0)
    torch.testing.assert_close(states.grad[states.grad != 0].unique(), torch.tensor([1 / 0.7]))


@given(pair=st.tuples(KEY, KEY), others=st.lists(st.tuples(KEY, KEY), max_size=3), site=st.integers(0, 200))
@settings(max_examples=30)
def test_a_sample_does_not_depend_on_its_batch(pair, others, site):
    alone = kept((6, 1, 8), keys(pair), 0.5, site)
    batch = kept((6, 1 + len(others), 8), keys(*others, pair), 0.5, site)
    assert torch.equal(batch[:, -1:], alone)


@given(pair=st.tuples(KEY, KEY), ranks=st.sampled_from([1, 2, 4, 8]), site=st.integers(0, 200))
@settings(max_examples=30)
def test_shares_of_a_sequence_are_its_parts(pair, ranks, site):
    """Sequence parallelism: each rank drops what the whole sequence would drop there."""
    whole = kept((16, 1, 8), keys(pair), 0.5, site)
    extent = 16 // ranks
    shares = [kept((extent, 1, 8), keys(pair), 0.5, site, first_position=rank * extent) for rank in range(ranks)]
    assert torch.equal(torch.cat(shares), whole)


def test_every_key_and_site_drops_other_units():
    """Agreement of two independent draws at one half is a half; four deviations of 4096 draws are 0.03."""
    # Keys are 24-bit words of the noise generator; neighbouring second words would give sites each other's units.
    words = (0x3A91C7, 0xB00F12), (0x3A91C7, 0x10D5E8), (0x77A001, 0xB00F12), (0x77A002, 0xB00F12)
    draws = [kept((64, 1, 64), keys(pair), 0.5, site) for pair in words for site in range(4)]
    for index, one in enumerate(draws):
        for other in draws[:index]:
            assert abs((one == other).double().mean().item() - 0.5) < 5 * 0.5 / 64


def test_neighbouring_units_are_uncorrelated():
    survived = kept((256, 2, 64), keys((5, 6), (7, 8)), 0.5).double() - 0.5
    for one, other in (
        (survived[1:], survived[:-1]),
        (survived[..., 1:], survived[..., :-1]),
        (survived[:, :1], survived[:, 1:]),
    ):
        assert abs((one * other).mean().item() * 4) < 5 / math.sqrt(one.numel())
