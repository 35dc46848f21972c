"""soft_tail_mask and context_weights against float64 loops that look at one position at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from card_scale.objectives.card import context_weights, soft_tail_mask, span_mask, uniform_mask
from tests.objectives import oracles

UNIT = st.floats(0.0, 1.0, width=32)
# Few distinct values, so that ties are common.
COARSE = st.sampled_from([0.0, 0.25, 0.5, 0.75])
FINE = st.integers(0, 2**24 - 1).map(lambda word: word / 2**24)


@st.composite
def mask_cases(draw):
    rows = draw(st.integers(1, 4))
    length = draw(st.integers(1, 40))
    value = draw(st.sampled_from([COARSE, FINE]))
    uniforms = draw(st.lists(st.lists(value, min_size=length, max_size=length), min_size=rows, max_size=rows))
    level = st.one_of(UNIT, st.integers(0, length).map(lambda count: count / length))
    levels = draw(st.lists(level, min_size=rows, max_size=rows))
    return levels, uniforms


@given(mask_cases(), st.one_of(st.sampled_from([1.0, 1.5, 2.0, 3.0]), st.floats(1.0, 50.0)))
@settings(max_examples=150, deadline=None)
def test_soft_tail_mask_equals_the_loop(case, tail_factor):
    levels, uniforms = case
    masked = soft_tail_mask(torch.tensor(levels, dtype=torch.float64), torch.tensor(uniforms), tail_factor)
    assert masked.dtype == torch.bool
    expected = [oracles.soft_tail_mask(t, row, tail_factor) for t, row in zip(levels, uniforms, strict=True)]
    assert masked.tolist() == expected


@given(mask_cases())
@settings(max_examples=60, deadline=None)
def test_uniform_mask_equals_the_loop(case):
    levels, uniforms = case
    masked = uniform_mask(torch.tensor(levels, dtype=torch.float64), torch.tensor(uniforms))
    assert masked.tolist() == [oracles.uniform_mask(t, row) for t, row in zip(levels, uniforms, strict=True)]


@given(mask_cases())
@settings(max_examples=60, deadline=None)
def test_float32_noise_levels_are_widened_before_the_product(case):
    levels, uniforms = case
    single = torch.tensor(levels, dtype=torch.float32)
    expected = [oracles.soft_tail_mask(t, row, 1.5) for t, row in zip(single.tolist(), uniforms, strict=True)]
    assert soft_tail_mask(single, torch.tensor(uniforms), 1.5).tolist() == expected


@pytest.mark.parametrize("length", [1, 2, 3, 7, 64])
def test_exactly_n_masks_inside_the_window_at_every_count(length):
    counts = torch.arange(length + 1)
    levels = counts.double() / length
    uniforms = torch.rand(length + 1, length, generator=torch.Generator().manual_seed(length))
    masked = soft_tail_mask(levels, uniforms, 1.5)
    expected = (length * levels).floor().clamp(min=1)
    assert torch.equal(masked.sum(1).double(), expected)
    first = masked.int().argmax(1)
    window = torch.minimum(torch.tensor(length), torch.maximum(expected, (1.5 * expected).floor()).long())
    assert (first >= length - window).all()


def test_tail_factor_one_is_a_solid_block_and_a_large_one_is_uniform_masking():
    levels = torch.linspace(0, 1, 9)
    uniforms = torch.rand(9, 33, generator=torch.Generator().manual_seed(0))
    solid = soft_tail_mask(levels, uniforms, 1.0)
    assert torch.equal(solid, solid.cummax(1).values)
    assert torch.equal(soft_tail_mask(levels, uniforms, 33.0), uniform_mask(levels, uniforms))


def test_ties_go_to_the_lower_position():
    masked = soft_tail_mask(torch.tensor([0.5]), torch.full((1, 8), 0.3), 1.5)
    assert masked.tolist() == [[False, False, True, True, True, True, False, False]]


def test_no_position_is_an_error():
    with pytest.raises(ValueError, match="at least one position"):
        soft_tail_mask(torch.tensor([0.5]), torch.zeros(1, 0))


@given(mask_cases(), st.one_of(st.sampled_from([2.0**-24, 0.03, 0.25, 1.0]), st.floats(1e-3, 1.0)), st.integers(1, 9))
@settings(max_examples=150, deadline=None)
def test_span_mask_equals_the_loop(case, rate, longest):
    _, uniforms = case
    masked = span_mask(torch.tensor(uniforms), rate, longest)
    assert masked.dtype == torch.bool
    assert masked.tolist() == [oracles.span_mask(row, rate, longest) for row in uniforms]


def test_lengths_of_spans_are_uniform_and_no_run_is_longer_unless_two_meet():
    uniforms = torch.zeros(4000, 9).fill_(0.9)
    uniforms[:, 0] = torch.arange(4000) / 4000 * 0.25
    lengths = span_mask(uniforms, 0.25, 4).sum(1)
    assert lengths.bincount().tolist() == [0, 1000, 1000, 1000, 1000]


masks = st.integers(1, 70).flatmap(
    lambda length: st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=1, max_size=3)
)


@given(
    masks,
    st.one_of(st.sampled_from([0.0, 1e-6, 0.01, 0.5, 1.0]), st.floats(0.0, 1.0)),
    st.one_of(st.sampled_from([1e-3, 1.0, 4.0]), st.floats(0.01, 100.0)),
)
@settings(max_examples=150, deadline=None)
def test_context_weights_equal_the_loop(masked, decay, beta):
    weights = context_weights(torch.tensor(masked), decay, beta)
    assert weights.dtype == torch.float32
    expected = torch.tensor([oracles.context_weights(row, decay, beta) for row in masked], dtype=torch.float64)
    torch.testing.assert_close(weights.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("decay", [0.0, 1e-4, 0.03, 0.5, 1.0])
def test_context_weights_of_a_long_sequence(decay):
    masked = torch.rand(2, 3000, generator=torch.Generator().manual_seed(1)) < torch.tensor([[0.5], [0.02]])
    masked[1, :1500] = True
    expected = torch.tensor([oracles.context_weights(row, decay, 1.0) for row in masked.tolist()], dtype=torch.float64)
    torch.testing.assert_close(context_weights(masked, decay).double(), expected, rtol=2e-6, atol=0)


def test_weights_without_masks_and_bounds():
    assert torch.equal(context_weights(torch.zeros(2, 5, dtype=torch.bool)), torch.ones(2, 5))
    assert torch.equal(context_weights(torch.zeros(2, 5, dtype=torch.bool), beta=4.0), torch.full((2, 5), 0.25))
    solid = context_weights(torch.ones(1, 200, dtype=torch.bool))
    assert solid[0, 0] == 0.5
    assert (solid >= 0.2).all()
    assert solid[0, -1] == pytest.approx(0.2, rel=1e-6)


@given(masks, st.data())
@settings(max_examples=60, deadline=None)
def test_a_weight_sees_only_its_context(masked, data):
    masked = torch.tensor(masked)
    position = data.draw(st.integers(0, masked.shape[1] - 1))
    changed = masked.clone()
    changed[:, position:] = ~changed[:, position:]
    before, after = context_weights(masked), context_weights(changed)
    assert torch.equal(before[:, :position], after[:, :position])
    assert (before[:, position] != after[:, position]).all()
