"""Mask rates, masks and weights of masked diffusion: strata over the global batch, whatever the layout."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from card_scale.data.samples import Samples
from card_scale.errors import ConfigurationError
from card_scale.objectives import masked_diffusion, noise
from card_scale.objectives.noise import Stream
from tests.objectives.samples import samples_of

MASK_ID = 4


def samples_at(global_positions, batch_size, sample_count=None, length=2):
    """Samples at ``global_positions``, in the order of their ids, the same in every epoch of ``sample_count``."""
    count = sample_count or 10**9
    tokens = torch.zeros((len(global_positions), length + 1), dtype=torch.int64)
    return Samples(tokens, global_positions % count, global_positions // count, global_positions, batch_size)


def levels_of(samples, blocks, seed=0):
    return masked_diffusion.stratified_uniforms(samples, blocks, seed, Stream.NOISE_LEVEL, Stream.STRATA)


def rotation(batch, seed=0):
    return noise.uniforms(seed, torch.tensor([batch]), torch.tensor([0]), 1, Stream.STRATA).item()


@given(
    batch_size=st.integers(1, 40),
    blocks=st.integers(1, 20),
    seed=st.integers(0, 2**40),
    batch=st.integers(0, 2**40),
    first_id=st.integers(0, 2**60),
)
@settings(max_examples=40, deadline=None)
def test_one_number_in_each_stratum(batch_size, blocks, seed, batch, first_id):
    places = torch.arange(batch_size)
    samples = samples_at(batch * batch_size + places, batch_size)._replace(sample_ids=first_id + places.flip(0))
    levels = levels_of(samples, blocks, seed)
    assert levels.dtype == torch.float64
    assert levels.shape == (batch_size, blocks)
    assert levels.min() >= 0
    assert levels.max() < 1
    count = batch_size * blocks
    turned_back = ((levels - rotation(batch, seed)) % 1.0 * count + 1e-8) % count
    assert sorted(turned_back.floor().long().flatten().tolist()) == list(range(count))
    # Within its stratum, a number is where the noise of its sample says.
    within = noise.uniforms(seed, samples.sample_ids, samples.epochs, blocks, Stream.NOISE_LEVEL)
    torch.testing.assert_close(turned_back % 1.0, within.double() + 1e-8, rtol=0, atol=1e-7)
    # A sample has one number in each of as many equal cells as it has blocks.
    cells = (turned_back // batch_size).long().sort(1).values
    assert cells.tolist() == [list(range(blocks))] * batch_size


@given(st.permutations(range(12)), st.lists(st.integers(1, 11), max_size=4), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_the_split_over_ranks_and_micro_batches_does_not_show(order, cuts, blocks):
    """Two batches of six, in any order and pieces."""
    samples = samples_at(60 + torch.arange(12), batch_size=6, sample_count=24)
    whole = levels_of(samples, blocks, 7)
    bounds = [0, *sorted(set(cuts)), 12]
    for begin, end in itertools.pairwise(bounds):
        part = torch.tensor(order[begin:end])
        piece = Samples(*(field[part] for field in samples[:4]), samples.batch_size)
        assert torch.equal(levels_of(piece, blocks, 7), whole[part])


def test_every_argument_changes_the_level():
    samples = samples_at(torch.tensor([14]), batch_size=4, sample_count=10)
    base = levels_of(samples, 8, 1)
    one = torch.tensor([1])
    for other, seed in (
        (samples._replace(sample_ids=samples.sample_ids + one), 1),
        (samples._replace(epochs=samples.epochs + one), 1),
        (samples._replace(global_positions=samples.global_positions + one), 1),  # another place
        (samples._replace(global_positions=samples.global_positions + 4), 1),  # another batch
        (samples._replace(batch_size=7), 1),
        (samples, 2),
    ):
        assert not (levels_of(other, 8, seed) == base).any()
    assert not torch.equal(
        masked_diffusion.stratified_uniforms(samples, 8, 1, Stream.EVALUATION_NOISE_LEVEL, Stream.STRATA), base
    )
    # The tokens are none of its arguments.
    assert torch.equal(levels_of(samples._replace(tokens=samples.tokens + 1), 8, 1), base)


@pytest.mark.parametrize("sample_count, batch_size, blocks", [(8, 4, 3), (4, 4, 1), (12, 3, 4), (7, 5, 2)])
def test_no_place_block_or_sample_is_tied_to_a_level(sample_count, batch_size, blocks):
    """Epochs that all have one order, whose length is a multiple of the batch but in the last case."""
    batches = 4096
    samples = samples_at(torch.arange(batches * batch_size), batch_size, sample_count)
    levels = levels_of(samples, blocks)
    uniform_steps = torch.arange(1, batches + 1, dtype=torch.float64) / batches
    by_place = levels.view(batches, batch_size, blocks).flatten(1).T
    for column in by_place:
        # Kolmogorov-Smirnov: exceeded with probability 2 exp(-2 * 2.5^2) = 7e-6.
        assert (column.sort().values - uniform_steps).abs().max() < 2.5 / math.sqrt(batches)
        # Successive batches are independent.
        assert abs(((column[1:] - 0.5) * (column[:-1] - 0.5)).mean().item() * 12) < 5 / math.sqrt(batches)
    for sample in range(sample_count):
        seen = levels[samples.sample_ids == sample]
        assert abs(seen[:, 0].mean().item() - 0.5) < 5 / math.sqrt(12 * len(seen))
        assert abs(((seen[1:, 0] - 0.5) * (seen[:-1, 0] - 0.5)).mean().item() * 12) < 5 / math.sqrt(len(seen))


@pytest.mark.parametrize("batch_size, blocks", [(16, 1), (16, 4), (4, 16), (6, 4), (4, 6), (16, 16), (3, 8)])
def test_means_over_blocks_samples_and_batches_vary_less_than_independent_levels(batch_size, blocks):
    batches = 2048
    levels = levels_of(samples_at(torch.arange(batches * batch_size), batch_size), blocks)
    levels = levels.view(batches, batch_size, blocks)
    for axes in (1, 2, (1, 2)):
        mean = levels.mean(axes)
        count = levels[0].numel() // mean[0].numel()
        if count > 1:
            assert mean.var(0).max() < 0.5 / (12 * count)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1, exclude_max=True))
@settings(max_examples=100, deadline=None)
def test_mask_rates(one, other, uniform):
    low, high = sorted((one, other))
    rate = masked_diffusion.mask_rates(torch.tensor([uniform], dtype=torch.float64), low, high).item()
    assert rate == pytest.approx(max(low, 0.001) + uniform * (max(high, 0.001) - max(low, 0.001)), abs=1e-15)
    assert 0.001 <= rate <= max(high, 0.001)


@given(
    rows=st.integers(1, 4),
    blocks=st.integers(1, 4),
    block=st.integers(1, 5),
    weighted=st.booleans(),
    seed=st.integers(0, 2**30),
)
@settings(max_examples=60, deadline=None)
def test_masks_inputs_and_weights_against_a_loop(rows, blocks, block, weighted, seed):
    length = blocks * block
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, 20, (rows, length + 1), generator=generator)
    rates = torch.rand((rows, blocks), generator=generator, dtype=torch.float64) * 0.999 + 0.001
    draws = torch.rand((rows, length), generator=generator)
    masked = masked_diffusion.independent_masks(rates, draws)
    assert masked.tolist() == [
        [draws[row, place].item() < rates[row, place // block].item() for place in range(length)] for row in range(rows)
    ]
    if length == 1:
        with pytest.raises(ConfigurationError, match=r"model\.length is 1; masked diffusion needs at least 2"):
            masked_diffusion.in_place_batch(samples_of(tokens), masked, rates, MASK_ID, weighted=weighted)
        return
    batch = masked_diffusion.in_place_batch(samples_of(tokens), masked, rates, MASK_ID, weighted=weighted)
    assert batch.positions.tolist() == [list(range(length))] * len(tokens)
    assert torch.equal(batch.targets, tokens[:, :-1])
    assert (batch.weights.dtype, batch.noise_level.dtype) == (torch.float32, torch.float32)
    assert torch.equal(batch.noise_level, rates.float())
    for row in range(rows):
        for place in range(length):
            hidden = place > 0 and bool(masked[row, place])
            assert batch.masked[row, place].item() == hidden
            assert batch.inputs[row, place].item() == (MASK_ID if hidden else tokens[row, place].item())
            weight = (1 / rates[row, place // block].item() if weighted else 1.0) if hidden else 0.0
            assert batch.weights[row, place].item() == pytest.approx(weight, rel=1e-7)
    assert masked_diffusion.clean_tokens(batch).dtype == torch.float64
    assert masked_diffusion.clean_tokens(batch).item() == rows * length


def test_the_weight_of_the_smallest_rate_is_not_clamped():
    """Rates down to 0.001 are drawn, and the bound needs the full 1000 there."""
    tokens = torch.arange(5, 14).repeat(2, 1)
    rates = torch.tensor([[0.001, 0.004], [0.002, 1.0]], dtype=torch.float64)
    masked = torch.ones((2, 8), dtype=torch.bool)
    batch = masked_diffusion.in_place_batch(samples_of(tokens), masked, rates, MASK_ID, weighted=True)
    expected = [[0.0] + [1000.0] * 3 + [250.0] * 4, [0.0] + [500.0] * 3 + [1.0] * 4]
    torch.testing.assert_close(batch.weights, torch.tensor(expected), rtol=1e-6, atol=0)


def test_masks_are_as_frequent_as_their_rate():
    count, rates = 1 << 17, (0.001, 0.05, 0.5, 0.93)
    ids = torch.arange(count)
    draws = noise.uniforms(3, ids, torch.zeros_like(ids), 8, Stream.MASK)
    masked = masked_diffusion.independent_masks(torch.tensor([rates], dtype=torch.float64).expand(count, -1), draws)
    for block, rate in enumerate(rates):
        frequency = masked[:, 2 * block : 2 * block + 2].double().mean().item()
        assert frequency == pytest.approx(rate, abs=5 * math.sqrt(rate * (1 - rate) / (2 * count)))
    assert masked_diffusion.independent_masks(torch.ones((4, 2), dtype=torch.float64), draws[:4]).all()


def test_strata_never_wait_for_the_device():
    with FakeTensorMode():
        assert levels_of(samples_of(torch.zeros((4, 9), dtype=torch.int64)), 4).shape == (4, 4)
