"""The search for the interval of least variance, against a search over the raw draws."""

import math
import statistics
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from card_scale.errors import ConfigurationError
from card_scale.objectives.block_diffusion import BlockDiffusionObjective
from card_scale.objectives.mask_interval import MASK_RATE_BINS, cell_sums, least_variance
from tests.objectives.samples import samples_of


def batch_of(rows, blocks, block, seed):
    """Return an evaluation batch, losses [B, L] of its tokens and which samples count."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, 20, (rows, blocks * block + 1), generator=generator)
    batch = BlockDiffusionObjective(block=block).likelihood(samples_of(tokens), seed)
    losses = torch.rand(batch.targets.shape, generator=generator) * 5 + batch.masked.sum(1, keepdim=True)
    return batch, losses, (torch.rand(rows, generator=generator) < 0.8).double()


def raw_draws(batch, losses, valid, block):
    """Return (mask rate, masks, loss per token) of each block that counts."""
    draws = []
    for row in range(len(losses)):
        for number in range(batch.noise_level.shape[1]):
            places = range(number * block, (number + 1) * block)
            if valid[row]:
                loss = math.fsum(losses[row, place].item() * batch.weights[row, place].item() for place in places)
                masks = sum(batch.masked[row, place].item() for place in places)
                draws.append((batch.noise_level[row, number].item(), masks, loss / block))
    return draws


def variances_by_hand(draws, block):
    """Return {(low, high): variance}; of all intervals that hold two draws."""
    found = {}
    for width in (10, 12, 14, 16, 18):
        for first in range(20 - width + 1):
            low, high = Fraction(first, 20), Fraction(first + width, 20)
            inside = [
                loss
                for rate, masks, loss in draws
                if low <= rate and (rate < high or high == 1) and low <= Fraction(masks, block) <= high
            ]
            if len(inside) >= 2:
                found[float(low), float(high)] = statistics.variance(inside)
    return found


@given(st.integers(1, 12), st.integers(1, 6), st.integers(2, 8), st.integers(0, 2**30), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_the_search_equals_one_over_raw_draws(rows, blocks, block, seed, pieces):
    batch, losses, valid = batch_of(rows, blocks, block, seed)
    sums = torch.zeros((MASK_RATE_BINS, block + 1, 3), dtype=torch.float64)
    for part in torch.arange(rows).chunk(pieces):
        piece = batch._replace(
            weights=batch.weights[part], masked=batch.masked[part], noise_level=batch.noise_level[part]
        )
        sums += cell_sums(losses[part], piece, valid[part])
    by_hand = variances_by_hand(raw_draws(batch, losses, valid, block), block)
    if not by_hand:
        with pytest.raises(ConfigurationError, match="no interval of mask rates holds two blocks"):
            least_variance(sums)
        return
    best = least_variance(sums)
    assert best.variance == pytest.approx(min(by_hand.values()), rel=1e-6, abs=1e-9)
    assert by_hand[best.low, best.high] == pytest.approx(best.variance, rel=1e-6, abs=1e-9)


def test_cells_against_a_loop():
    block = 4
    batch, losses, valid = batch_of(64, 8, block, 1)
    expected = torch.zeros((20, block + 1, 3), dtype=torch.float64)
    for rate, masks, loss in raw_draws(batch, losses, valid, block):
        expected[math.floor(rate * 20), masks] += torch.tensor((1.0, loss, loss**2), dtype=torch.float64)
    sums = cell_sums(losses, batch, valid)
    assert (sums.dtype, sums.shape) == (torch.float64, (20, block + 1, 3))
    torch.testing.assert_close(sums, expected, rtol=1e-6, atol=1e-9)
    assert sums[..., 0].sum() == valid.sum() * 8


def test_samples_that_do_not_count_leave_no_trace():
    batch, losses, valid = batch_of(16, 4, 4, 2)
    wild = torch.where(valid[:, None] > 0, losses, 1e9)
    assert torch.equal(cell_sums(wild, batch, valid), cell_sums(losses, batch, valid))
    assert (cell_sums(losses, batch, torch.zeros_like(valid)) == 0).all()


def test_a_mask_rate_of_one_is_in_the_last_cell():
    batch, losses, _ = batch_of(1, 1, 4, 3)
    batch = batch._replace(noise_level=torch.ones(1, 1), masked=torch.ones(1, 4, dtype=torch.bool))
    assert cell_sums(losses, batch, torch.ones(1, dtype=torch.float64))[19, 4, 0] == 1


def sums_of(draws, block):
    sums = torch.zeros((MASK_RATE_BINS, block + 1, 3), dtype=torch.float64)
    for rate, masks, loss in draws:
        sums[math.floor(rate * 20), masks] += torch.tensor((1.0, loss, loss**2), dtype=torch.float64)
    return sums


def test_the_interval_of_equal_losses_is_found():
    """Losses that are equal where rate and share lie in [0.3, 0.8], and far apart elsewhere."""
    block, draws = 10, []
    for step in range(20):
        for masks in range(block + 1):
            inside = 6 <= step < 16 and 3 <= masks <= 8
            draws += [((step + 0.5) / 20, masks, 2.0 if inside else sign * 100.0) for sign in (-1, 1)]
    assert least_variance(sums_of(draws, block)) == (0.3, 0.8, 0.0)


def test_empty_intervals_are_passed_over():
    # Two draws with rates and shares above 0.9: only intervals that end at 1 and begin at 0.9 or before hold both.
    best = least_variance(sums_of([(0.96, 4, 1.0), (0.97, 4, 3.0)], 4))
    assert (best.high, best.variance) == (1.0, 2.0)
    with pytest.raises(ConfigurationError, match=r"raise data\.validation_samples"):
        least_variance(sums_of([(0.96, 4, 1.0)], 4))
    with pytest.raises(ConfigurationError, match=r"raise data\.validation_samples"):
        least_variance(sums_of([], 4))
    # The masked share of one of them is none that such an interval allows.
    with pytest.raises(ConfigurationError, match=r"raise data\.validation_samples"):
        least_variance(sums_of([(0.96, 4, 1.0), (0.97, 0, 3.0)], 4))


def test_its_intervals_can_be_trained_with():
    for block in (2, 3, 4, 8, 16):
        for width in (10, 12, 14, 16, 18):
            for first in range(20 - width + 1):
                low, high = round(first * 0.05, 2), round((first + width) * 0.05, 2)
                objective = BlockDiffusionObjective(block=block, min_mask=low, max_mask=high)
                assert objective.block == block
