"""The BD3-LM objective as a whole: loss against a float64 loop, its limits at block 1 and L, clipped intervals."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from card_scale.data.samples import Samples
from card_scale.errors import ConfigurationError
from card_scale.objectives import registry
from card_scale.objectives.attention import BlockDiffusion
from card_scale.objectives.batch import weighted_loss
from card_scale.objectives.block_diffusion import BlockDiffusionObjective, attention_mask
from card_scale.objectives.mdlm import MdlmObjective
from card_scale.objectives.noise import Stream, uniforms
from tests.objectives import oracles
from tests.objectives.samples import samples_of, tensors_of
from tests.objectives.test_mdlm import MASK_ID, STREAMS, VOCABULARY, clean_tokens

BLOCKS = st.tuples(st.integers(1, 6), st.integers(1, 6)).filter(lambda sizes: sizes[0] * sizes[1] > 1)
"""(blocks, block) of a sample."""


def objective_of(block, **interval):
    return BlockDiffusionObjective(block=block, mask_id=MASK_ID, **interval)


@given(BLOCKS)
@settings(max_examples=36, deadline=None)
def test_the_mask_is_the_union_of_its_three_parts(sizes):
    blocks, block = sizes
    length = blocks * block
    mask = attention_mask(length, block)
    assert (mask.dtype, mask.shape) == (torch.bool, (2 * length, 2 * length))
    assert mask.tolist() == [
        [oracles.sees(query, key, length, block) for key in range(2 * length)] for query in range(2 * length)
    ]
    assert mask.sum() == length**2 + length * block
    query, key = torch.randint(0, 2 * length, (2, 50), generator=torch.Generator().manual_seed(0))
    assert torch.equal(BlockDiffusion(block).visible(query, key, 2 * length), mask[query, key])


def test_the_mask_of_two_blocks_of_two():
    picture = """
        11......
        11......
        ..1111..
        ..1111..
        ....11..
        ....11..
        ....1111
        ....1111
    """
    assert attention_mask(4, 2).tolist() == [[mark == "1" for mark in row] for row in picture.split()]


@pytest.mark.parametrize("length, block", [(12, 5), (12, 24), (12, 0), (12, -3)])
def test_the_mask_of_blocks_that_do_not_fit(length, block):
    with pytest.raises(ValueError, match=rf"block {block} does not divide the length {length}"):
        attention_mask(length, block)


@given(
    rows=st.integers(1, 4),
    sizes=BLOCKS,
    seed=st.integers(0, 2**40),
    first_batch=st.integers(0, 100),
    purpose=st.sampled_from(["corrupt", "likelihood"]),
)
@settings(max_examples=60, deadline=None)
def test_loss_equals_the_loop_from_logits_to_scalar(rows, sizes, seed, first_batch, purpose):
    blocks, block = sizes
    length = blocks * block
    tokens = clean_tokens(rows, length, seed % 1000)
    ids, epochs, places = torch.arange(rows) + seed % 1000, torch.arange(rows) % 3, torch.arange(rows).flip(0)
    objective = objective_of(block)
    batch = getattr(objective, purpose)(samples_of(tokens, ids, epochs, first_batch * rows + places), seed)
    clean = tokens[:, :-1]
    assert torch.equal(batch.inputs[:, length:], clean)
    assert torch.equal(batch.targets, clean)
    assert batch.positions.tolist() == [list(range(length)) * 2] * len(batch.inputs)
    assert batch.noise_level.shape == (rows, blocks)
    # The logits depend on what the model reads, so a wrong input shows in the loss.
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64)
    noisy = batch.inputs[:, :length]
    losses = torch.nn.functional.cross_entropy(table[noisy].transpose(1, 2), batch.targets, reduction="none")
    loss = weighted_loss(losses, batch.weights, objective.normaliser(batch)).item()

    level_stream, strata_stream, mask_stream = STREAMS[purpose]
    within = uniforms(seed, ids, epochs, blocks, level_stream).tolist()
    turned = uniforms(seed, torch.tensor([first_batch]), torch.tensor([0]), 1, strata_stream).item()
    draws = uniforms(seed, ids, epochs, length, mask_stream).tolist()
    total = 0.0
    for row in range(rows):
        place = places[row].item()
        for position in range(1, length):
            number = position // block
            cell = (number + place * blocks // min(rows, blocks)) % blocks
            level = ((cell * rows + place + within[row][number]) / (rows * blocks) + turned) % 1.0
            rate = 1.0 if block == 1 else 0.001 + 0.999 * level
            assert batch.noise_level[row, number].item() == pytest.approx(rate, rel=1e-6)
            masked = draws[row][position] < rate
            assert batch.masked[row, position].item() == masked
            if masked:
                total += oracles.cross_entropy(table[MASK_ID].tolist(), int(clean[row, position])) / rate
    assert loss == pytest.approx(total / (rows * length), rel=1e-6)


@pytest.mark.parametrize("purpose", ["corrupt", "likelihood"])
@pytest.mark.parametrize("length", [2, 12, 33])
def test_one_block_is_mdlm(purpose, length):
    samples = samples_of(clean_tokens(6, length))
    mdlm = getattr(MdlmObjective(mask_id=MASK_ID), purpose)(samples, 3)
    block = getattr(objective_of(length), purpose)(samples, 3)
    for name in ("targets", "weights", "masked", "noise_level"):
        assert torch.equal(getattr(mdlm, name), getattr(block, name))
    assert torch.equal(block.inputs[:, :length], mdlm.inputs)
    assert torch.equal(block.positions[:, :length], mdlm.positions)


@pytest.mark.parametrize("purpose", ["corrupt", "likelihood"])
@pytest.mark.parametrize("interval", [{}, {"min_mask": 0.6}])
def test_blocks_of_one_token_are_all_masked_with_weight_one(purpose, interval):
    objective = objective_of(1, **interval)
    tokens = clean_tokens(5, 9)
    batch = getattr(objective, purpose)(samples_of(tokens), 3)
    assert batch.masked.tolist() == [[False] + [True] * 8] * 5
    assert batch.weights.tolist() == [[0.0] + [1.0] * 8] * 5
    assert (batch.inputs[:, 1:9] == MASK_ID).all()
    assert torch.equal(batch.inputs[:, 9:], tokens[:, :-1])
    assert objective.likelihood_is_exact
    assert not objective_of(2).likelihood_is_exact


CLIPPED = [(4, 0.5, 1.0), (4, 0.45, 0.95), (16, 0.3, 0.8), (10, 0.3, 0.7), (8, 0.0, 0.5), (6, 0.8, 0.9), (5, 0.6, 0.6)]


@pytest.mark.parametrize("block, low, high", CLIPPED)
def test_clipped_rates_and_shares_lie_in_the_interval(block, low, high):
    rows, length = 256, 4 * block
    samples = samples_of(clean_tokens(rows, length))
    batch = objective_of(block, min_mask=low, max_mask=high).corrupt(samples, 1)
    rates = batch.noise_level
    assert rates.min() >= max(low, 0.001) - 1e-7
    assert rates.max() <= high + 1e-7
    if high > low:
        assert rates.min() < low + 0.01 * (high - low) + 0.001
        assert rates.max() > high - 0.01 * (high - low)
    # The first token of a sample is clean whatever was drawn for it: its block may fall short by one.
    shares = batch.masked.unflatten(1, (-1, block)).double().mean(2)
    assert shares.max() <= high + 1e-9
    assert shares[:, 1:].min() >= low - 1e-9
    assert shares[:, 0].min() >= low - 1 / block - 1e-9
    assert not batch.masked[:, 0].any()
    weights = torch.ones_like(rates) if low > 0.5 else 1 / rates
    expected = weights.repeat_interleave(block, 1) * batch.masked
    torch.testing.assert_close(batch.weights, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("block, low, high", CLIPPED)
def test_evaluation_ignores_the_interval(block, low, high):
    samples = samples_of(clean_tokens(256, 4 * block))
    clipped, plain = objective_of(block, min_mask=low, max_mask=high), objective_of(block)
    for one, other in zip(
        tensors_of(clipped.likelihood(samples, 1)), tensors_of(plain.likelihood(samples, 1)), strict=True
    ):
        assert torch.equal(one, other)
    rates = plain.likelihood(samples, 1).noise_level
    assert 0.001 <= rates.min() < 0.003
    assert 0.998 < rates.max() <= 1
    # Nor are the draws those of training.
    assert not torch.equal(plain.likelihood(samples, 1).masked, plain.corrupt(samples, 1).masked)


def test_an_interval_from_a_thousandth_to_one_forbids_no_share():
    samples = samples_of(clean_tokens(512, 8))
    for interval in ({}, {"min_mask": 0.0}, {"min_mask": 0.001, "max_mask": 1.0}):
        batch = objective_of(4, **interval).corrupt(samples, 1)
        assert batch.masked[:, 4:].sum(1).unique().tolist() == [0, 1, 2, 3, 4]


@given(
    st.permutations(range(8)),
    st.integers(1, 7),
    st.sampled_from([(1, {}), (4, {}), (4, {"min_mask": 0.3, "max_mask": 0.8}), (32, {})]),
    st.sampled_from(["corrupt", "likelihood"]),
)
@settings(max_examples=30, deadline=None)
def test_corruption_does_not_depend_on_the_layout(order, split, setting, purpose):
    block, interval = setting
    samples = samples_of(
        clean_tokens(8, 32), torch.arange(8) * 10**12, torch.arange(8) % 3, 40 + torch.arange(8), batch_size=4
    )
    corrupt = getattr(objective_of(block, **interval), purpose)
    whole = corrupt(samples, 5)
    for part in (torch.tensor(order[:split]), torch.tensor(order[split:])):
        batch = corrupt(Samples(*(field[part] for field in samples[:4]), 4), 5)
        for field in ("inputs", "targets", "weights", "masked", "noise_level"):
            assert torch.equal(getattr(batch, field), getattr(whole, field)[part])


@pytest.mark.parametrize("purpose", ["corrupt", "likelihood"])
@pytest.mark.parametrize("block, interval", [(1, {}), (8, {}), (8, {"min_mask": 0.3, "max_mask": 0.8}), (32, {})])
def test_corruption_never_waits_for_the_device(block, interval, purpose):
    with FakeTensorMode():
        objective = objective_of(block, **interval)
        batch = getattr(objective, purpose)(samples_of(torch.zeros(4, 33, dtype=torch.int64)), 0)
        assert weighted_loss(batch.weights, batch.weights, objective.normaliser(batch)).shape == ()


@pytest.mark.parametrize(
    "key, value",
    [
        ("block", 0),
        ("block", -4),
        ("block", math.inf),
        ("block", "16"),
        ("block", True),
        ("min_mask", -0.1),
        ("min_mask", 1.1),
        ("min_mask", math.nan),
        ("max_mask", 1.1),
        ("max_mask", "1"),
    ],
)
def test_bad_parameters_name_the_key(key, value):
    with pytest.raises(ConfigurationError, match=rf"objective\.{key} is .*valid"):
        registry.create("bd3lm", **{key: value})


def test_an_interval_in_the_wrong_order():
    with pytest.raises(ConfigurationError, match=r"objective\.max_mask is 0\.3; .* from 0\.5 to 1"):
        objective_of(4, min_mask=0.5, max_mask=0.3)


@pytest.mark.parametrize("block, low, high", [(4, 0.3, 0.4), (2, 0.6, 0.9), (16, 0.001, 0.05), (4, 0.0, 0.0)])
def test_an_interval_without_any_number_of_masks(block, low, high):
    message = rf"objective\.min_mask {low} to objective\.max_mask {high} holds no .* objective\.block {block}"
    with pytest.raises(ConfigurationError, match=message):
        objective_of(block, min_mask=low, max_mask=high)


@pytest.mark.parametrize("purpose", ["corrupt", "likelihood"])
def test_a_block_that_does_not_divide_the_length(purpose):
    with pytest.raises(ConfigurationError, match=r"objective\.block 5 does not divide model\.length 12"):
        getattr(objective_of(5), purpose)(samples_of(clean_tokens(2, 12)), 0)


def test_a_length_of_one_is_too_short():
    with pytest.raises(ConfigurationError, match=r"model\.length is 1"):
        objective_of(1).corrupt(samples_of(torch.tensor([[1, 2]])), 0)


def test_registry_normaliser_and_attention():
    objective = registry.create("bd3lm", block=3, min_mask=0.3, max_mask=0.8, mask_id=MASK_ID)
    assert objective == objective_of(3, min_mask=0.3, max_mask=0.8)
    assert objective.attention == BlockDiffusion(3)
    assert dataclasses.replace(objective, block=4).attention == BlockDiffusion(4)
    batch = objective.corrupt(samples_of(clean_tokens(5, 12)), 0)
    assert objective.normaliser(batch).item() == 5 * 12
    assert objective.normaliser(batch).dtype == torch.float64
    assert objective.scored(12) == 11


def test_count_noise_is_a_stream_of_its_own():
    """Were the counts drawn with the positions' or the levels' numbers, all of a block's would hang together."""
    samples = samples_of(clean_tokens(2048, 8))
    batch = objective_of(4, min_mask=0.25, max_mask=0.75).corrupt(samples, 1)
    counts = batch.masked[:, 4:].sum(1).double()
    draws = uniforms(1, samples.sample_ids, samples.epochs, 8, Stream.MASK)
    for other in (draws[:, 4:].amin(1), draws[:, 4], draws.mean(1)):
        assert abs(torch.corrcoef(torch.stack((counts, other.double())))[0, 1].item()) < 5 / math.sqrt(2048)
