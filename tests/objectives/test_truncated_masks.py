"""Masks of clipped intervals against rejection sampling, by the exact probability of every pattern."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from card_scale.objectives.block_diffusion import truncated_masks


def probabilities(rate: float, block: int, fewest: int, most: int) -> dict[tuple[bool, ...], float]:
    """Probability of each pattern: independent masks, drawn again until their number is in range."""
    accepted = {
        pattern: rate ** sum(pattern) * (1 - rate) ** (block - sum(pattern))
        for pattern in itertools.product((False, True), repeat=block)
        if fewest <= sum(pattern) <= most
    }
    total = math.fsum(accepted.values())
    return {pattern: probability / total for pattern, probability in accepted.items()}


def draw(rates, block, fewest, most, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows, blocks = rates.shape
    uniforms = torch.rand((rows, blocks * block), generator=generator)
    counts = torch.rand((rows, blocks), generator=generator)
    return truncated_masks(rates, uniforms, counts, fewest, most)


@pytest.mark.parametrize("rate", [0.001, 0.2, 0.5, 0.85, 0.999])
@pytest.mark.parametrize(
    "block, fewest, most",
    [(1, 0, 1), (1, 1, 1), (2, 1, 2), (2, 0, 1), (3, 1, 2), (4, 0, 4), (4, 2, 2), (4, 2, 3), (5, 1, 4), (5, 0, 2)],
)
def test_the_distribution_is_that_of_drawing_again(rate, block, fewest, most):
    rows, blocks = 1 << 14, 4
    masked = draw(torch.full((rows, blocks), rate, dtype=torch.float64), block, fewest, most)
    code = (masked.unflatten(1, (-1, block)) * 2 ** torch.arange(block)).sum(2).flatten()
    seen = torch.bincount(code, minlength=2**block).tolist()
    count = rows * blocks
    chi_square, cells, rest_seen, rest_expected = 0.0, 0, count, float(count)
    for pattern, probability in probabilities(rate, block, fewest, most).items():
        observed, expected = seen[sum(2**place for place in range(block) if pattern[place])], count * probability
        if expected >= 10:
            chi_square += (observed - expected) ** 2 / expected
            cells += 1
            rest_seen, rest_expected = rest_seen - observed, rest_expected - expected
    # Patterns too rare for a cell of their own, and those that must not occur, together.
    if rest_expected < 1e-6:
        assert rest_seen == 0
    else:
        chi_square += (rest_seen - rest_expected) ** 2 / max(rest_expected, 1.0)
        cells += 1
    # As many degrees of freedom as cells but one, each of mean 1 and variance 2.
    assert chi_square <= cells + 6 * math.sqrt(2 * cells)


def test_each_block_has_its_own_rate_and_noise():
    rates = torch.tensor([[0.1, 0.5, 0.9]], dtype=torch.float64).expand(1 << 15, -1)
    masked = draw(rates, 4, 1, 3).unflatten(1, (-1, 4))
    counts = masked.sum(2).double()
    for block, rate in enumerate(rates[0].tolist()):
        mean = sum(p * sum(pattern) for pattern, p in probabilities(rate, 4, 1, 3).items())
        assert counts[:, block].mean().item() == pytest.approx(mean, abs=6 / math.sqrt(len(counts)))
    correlation = torch.corrcoef(counts.T) - torch.eye(3, dtype=torch.float64)
    assert correlation.abs().max() < 6 / math.sqrt(len(counts))
    # Within a block all positions are alike.
    frequency = masked.double().mean(0)
    assert (frequency - frequency.mean(1, keepdim=True)).abs().max() < 5 / math.sqrt(len(counts))


@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 33).flatmap(lambda block: st.tuples(st.just(block), st.integers(0, block), st.integers(0, block))),
    st.floats(0.001, 0.9999),
    st.integers(0, 2**30),
)
@settings(max_examples=100, deadline=None)
def test_the_number_of_masks_is_always_in_range(rows, blocks, block_and_counts, rate, seed):
    block, *counts = block_and_counts
    fewest, most = sorted(counts)
    masked = draw(torch.full((rows, blocks), rate, dtype=torch.float64), block, fewest, most, seed)
    assert (masked.dtype, masked.shape) == (torch.bool, (rows, blocks * block))
    number = masked.unflatten(1, (-1, block)).sum(2)
    assert ((number >= fewest) & (number <= most)).all()


@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-24])
def test_the_ends_of_the_uniforms(uniform):
    rates = torch.tensor([[0.001, 0.5, 1.0]], dtype=torch.float64)
    masked = truncated_masks(rates, torch.zeros(1, 12), torch.full((1, 3), uniform), 0, 4)
    number = masked.unflatten(1, (-1, 4)).sum(2)[0].tolist()
    # Above 0.999999 of the binomial distribution of four: 1 mask at most seldom makes 2 (6e-6), never 3 (4e-9).
    assert number == ([0, 0, 4] if uniform == 0.0 else [2, 4, 4])


def test_a_rate_of_one_masks_everything():
    assert draw(torch.ones((5, 3), dtype=torch.float64), 4, 2, 4).all()
    assert draw(torch.ones((5, 3), dtype=torch.float64), 1, 0, 1).all()
