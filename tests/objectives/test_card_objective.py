"""The CARD objective as a whole: loss against a float64 loop, ablations, evaluation batches, published statistics."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from card_scale.errors import ConfigurationError
from card_scale.objectives import registry
from card_scale.objectives.ar import ArObjective
from card_scale.objectives.attention import Causal
from card_scale.objectives.batch import weighted_loss
from card_scale.objectives.card import CardObjective, context_weights, soft_tail_mask
from card_scale.objectives.noise import Stream, uniforms
from tests.objectives import oracles
from tests.objectives.samples import samples_of, tensors_of

VOCABULARY = 11
MASK_ID = 4


def clean_tokens(rows, length, seed=0):
    tokens = torch.randint(0, VOCABULARY - 1, (rows, length + 1), generator=torch.Generator().manual_seed(seed))
    return tokens + (tokens >= MASK_ID)


def cross_entropy(logits, targets):
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")


def batch_of(objective, rows=4, length=16, seed=7):
    tokens = clean_tokens(rows, length)
    ids = torch.arange(rows) * 1001
    return tokens, objective.corrupt(samples_of(tokens, ids, torch.ones(rows, dtype=torch.int64)), seed)


@given(
    rows=st.integers(1, 4),
    length=st.integers(2, 24),
    seed=st.integers(0, 2**40),
    tail_factor=st.floats(1.0, 4.0),
    decay=st.floats(0.0, 1.0),
    beta=st.floats(0.1, 10.0),
    reweight=st.booleans(),
    masked_weight=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    masking=st.sampled_from(["soft_tail", "uniform", "spans"]),
    noise=st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)).map(sorted),
)
@settings(max_examples=100, deadline=None)
def test_loss_equals_the_loop_from_logits_to_scalar(
    rows, length, seed, tail_factor, decay, beta, reweight, masked_weight, masking, noise
):
    settings = {"span_rate": 0.2} if masking == "spans" else {"min_noise": noise[0], "max_noise": noise[1]}
    settings |= {} if masking == "spans" else {"tail_factor": tail_factor}
    settings |= {} if reweight else {"masked_weight": masked_weight}
    objective = CardObjective(decay=decay, beta=beta, reweight=reweight, masking=masking, mask_id=MASK_ID, **settings)
    tokens = clean_tokens(rows, length, seed % 1000)
    ids = torch.arange(rows) + seed % 1000
    epochs = torch.arange(rows) % 3
    batch = objective.corrupt(samples_of(tokens, ids, epochs), seed)
    generator = torch.Generator().manual_seed(seed)
    # The logits depend on what the model reads, so a wrong input shows in the loss.
    table = torch.randn(VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64)
    loss = weighted_loss(
        cross_entropy(table[batch.inputs], batch.targets), batch.weights, objective.normaliser(batch)
    ).item()

    levels = uniforms(seed, ids, epochs, 1, Stream.NOISE_LEVEL)[:, 0].tolist()
    draws = uniforms(seed, ids, epochs, length - 1, Stream.MASK).tolist()
    total = weight_sum = 0.0
    for row in range(rows):
        level = noise[0] + (noise[1] - noise[0]) * levels[row]
        level = torch.tensor(level, dtype=torch.float32).item()
        if masking == "spans":
            masked = [False] + oracles.span_mask(draws[row], 0.2, 4)
            level = sum(masked) / length
        elif masking == "soft_tail":
            masked = [False] + oracles.soft_tail_mask(level, draws[row], tail_factor)
        else:
            masked = [False] + oracles.uniform_mask(level, draws[row])
        assert batch.noise_level[row].item() == pytest.approx(level, abs=1e-7)
        assert batch.masked[row].tolist() == masked
        weights = [masked_weight if here else 1.0 for here in masked]
        weights = oracles.context_weights(masked, decay, beta) if reweight else weights
        for position in range(length):
            read = MASK_ID if masked[position] else int(tokens[row, position])
            total += weights[position] * oracles.cross_entropy(table[read].tolist(), int(tokens[row, position + 1]))
            weight_sum += weights[position]
    assert loss == pytest.approx(total / weight_sum, rel=1e-6)


def test_without_masks_the_loss_is_exactly_that_of_ar():
    tokens = clean_tokens(3, 20)
    logits = torch.randn(3, 20, VOCABULARY, generator=torch.Generator().manual_seed(3))
    card, ar = CardObjective(), ArObjective()
    clean = card.likelihood(samples_of(tokens), 0)
    trained = ar.corrupt(samples_of(tokens, torch.arange(3), torch.zeros(3, dtype=torch.int64)), 0)
    for ours, theirs in zip(tensors_of(clean), tensors_of(trained), strict=True):
        assert torch.equal(ours, theirs)
    losses = cross_entropy(logits, clean.targets)
    unmasked = clean._replace(weights=context_weights(clean.masked, card.decay, card.beta))
    card_loss = weighted_loss(losses, unmasked.weights, card.normaliser(unmasked))
    assert torch.equal(card_loss, weighted_loss(losses, trained.weights, ar.normaliser(trained)))
    assert card_loss.item() == pytest.approx(losses.double().mean().item(), rel=1e-6)


def test_shapes_types_and_what_stays_clean():
    tokens, batch = batch_of(CardObjective(), rows=64, length=16)
    assert [t.dtype for t in tensors_of(batch)] == [
        torch.int64,
        torch.int64,
        torch.int64,
        torch.float32,
        torch.bool,
        torch.float32,
    ]
    assert batch.positions.tolist() == [list(range(16))] * len(batch.inputs)
    assert torch.equal(batch.targets, tokens[:, 1:])
    assert not (batch.targets == MASK_ID).any()
    assert not batch.masked[:, 0].any()
    assert torch.equal(batch.inputs == MASK_ID, batch.masked)
    assert torch.equal(batch.inputs[~batch.masked], tokens[:, :-1][~batch.masked])
    assert ((batch.noise_level >= 0) & (batch.noise_level < 1)).all()
    assert batch.noise_level.unique().numel() > 32


@given(st.permutations(range(6)), st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_corruption_does_not_depend_on_the_layout(order, split):
    tokens = clean_tokens(6, 33)
    ids, epochs = torch.arange(6) * 10**12, torch.tensor([0, 1, 2, 0, 1, 2])
    objective = CardObjective(decay=0.3)
    whole = objective.corrupt(samples_of(tokens, ids, epochs), 5)
    order = torch.tensor(order)
    for part in (order[:split], order[split:]):
        batch = objective.corrupt(samples_of(tokens[part], ids[part], epochs[part]), 5)
        for field in ("inputs", "targets", "weights", "masked", "noise_level"):
            assert torch.equal(getattr(batch, field), getattr(whole, field)[part])


def test_another_epoch_or_seed_is_another_corruption():
    tokens = clean_tokens(8, 64)
    ids, zero = torch.arange(8), torch.zeros(8, dtype=torch.int64)
    objective = CardObjective()
    base = objective.corrupt(samples_of(tokens, ids, zero), 0)
    assert not torch.equal(base.masked, objective.corrupt(samples_of(tokens, ids, zero + 1), 0).masked)
    assert not torch.equal(base.masked, objective.corrupt(samples_of(tokens, ids, zero), 1).masked)


@pytest.mark.parametrize("masking", ["soft_tail", "uniform", "spans"])
def test_corruption_never_waits_for_the_device(masking):
    # A fake tensor has no values: reading one on the host (.item(), a branch on data) raises.
    with FakeTensorMode():
        tokens = torch.zeros(4, 33, dtype=torch.int64)
        ids = torch.zeros(4, dtype=torch.int64)
        objective = CardObjective(masking=masking)
        batch = objective.corrupt(samples_of(tokens, ids, ids), 0)
        assert weighted_loss(batch.weights, batch.weights, objective.normaliser(batch)).shape == ()


def test_ablations():
    _, base = batch_of(CardObjective(), rows=32, length=40)
    _, flat = batch_of(CardObjective(reweight=False), rows=32, length=40)
    assert torch.equal(flat.masked, base.masked)
    assert torch.equal(flat.weights, torch.ones_like(flat.weights))
    _, solid = batch_of(CardObjective(tail_factor=1.0), rows=32, length=40)
    assert torch.equal(solid.masked, solid.masked.cummax(1).values)
    assert torch.equal(solid.masked.sum(1), base.masked.sum(1))
    _, scattered = batch_of(CardObjective(masking="uniform"), rows=32, length=40)
    assert torch.equal(scattered.masked.sum(1), base.masked.sum(1))
    assert scattered.masked[:, 1:20].sum() > base.masked[:, 1:20].sum()
    _, spans = batch_of(CardObjective(masking="spans", span_rate=0.5, span_length=2), rows=512, length=40)
    # A position stays clean if neither it nor the one before covers it: (1 - 1/2)(1 - 1/4); the second input has one.
    assert spans.masked[:, 2:].float().mean().item() == pytest.approx(1 - 0.5 * 0.75, abs=0.01)
    assert spans.masked[:, 1].float().mean().item() == pytest.approx(0.5, abs=0.08)
    assert not spans.masked[:, 0].any()
    _, narrow = batch_of(CardObjective(min_noise=0.2, max_noise=0.4), rows=256, length=40)
    assert 0.2 <= narrow.noise_level.min() < 0.21
    assert 0.39 < narrow.noise_level.max() <= torch.tensor(0.4)
    _, fixed = batch_of(CardObjective(min_noise=0.5, max_noise=0.5))
    assert (fixed.noise_level == 0.5).all()
    _, steep = batch_of(CardObjective(beta=2.0, decay=1.0), rows=32, length=40)
    assert set(steep.weights.unique().tolist()) <= {0.5, torch.tensor(1 / 3).item(), 0.25}


# Share of positions with a clean context, share of the weight on them, and a sequence's mean weight elsewhere: known
# consequences of the masking and weighting rules for t uniform in [0, 1], decay 0.5 and beta 1.
STATISTICS = [
    (1.0, 0.51, 0.83, 0.21),
    (1.25, 0.41, 0.72, 0.28),
    (1.5, 0.34, 0.62, 0.33),
    (2.0, 0.255, 0.475, 0.40),
    (3.0, 0.175, 0.33, 0.46),
]


@pytest.mark.parametrize("tail_factor, clean_share, clean_weight, noisy_mean", STATISTICS)
def test_statistics_of_masks_and_weights(tail_factor, clean_share, clean_weight, noisy_mean):
    rows, length = 20_000, 128
    ids, zero = torch.arange(rows), torch.zeros(rows, dtype=torch.int64)
    levels = uniforms(0, ids, zero, 1, Stream.NOISE_LEVEL)[:, 0]
    masked = soft_tail_mask(levels, uniforms(0, ids, zero, length, Stream.MASK), tail_factor)
    weights = context_weights(masked).double()
    clean = masked.cumsum(1) == 0
    assert clean.double().mean().item() == pytest.approx(clean_share, abs=0.015)
    assert (weights[clean].sum() / weights.sum()).item() == pytest.approx(clean_weight, abs=0.015)
    per_sequence = (weights * ~clean).sum(1) / (~clean).sum(1)
    assert per_sequence.mean().item() == pytest.approx(noisy_mean, abs=0.015)
    if tail_factor == 1.5:
        assert weights.mean().item() == pytest.approx(0.55, abs=0.015)
        effective = (weights.sum(1) ** 2 / (weights**2).sum(1) / length).mean()
        assert effective.item() == pytest.approx(0.845, abs=0.01)
        own_token_masked = masked[:, 1:]
        share = weights[:, :-1][own_token_masked].sum() / weights[:, :-1].sum()
        assert share.item() == pytest.approx(0.29, abs=0.015)


def test_at_noise_level_masks_that_share_with_unit_weights():
    tokens = clean_tokens(50, 41)
    ids = torch.arange(50)
    objective = CardObjective(beta=3.0)
    for level in (0.0, 0.25, 0.7, 1.0):
        levels = torch.full((50,), level, dtype=torch.float64)
        batch = objective.at_noise_level(samples_of(tokens, ids), levels, 9)
        assert (batch.masked.sum(1) == max(1, math.floor(40 * level))).all()
        assert torch.equal(batch.weights, torch.ones(50, 41))
        again = objective.at_noise_level(samples_of(tokens.flip(0), ids.flip(0)), levels, 9)
        assert torch.equal(again.masked.flip(0), batch.masked)
    trained = objective.corrupt(samples_of(tokens, ids, torch.zeros(50, dtype=torch.int64)), 9)
    same_levels = objective.at_noise_level(samples_of(tokens, ids), trained.noise_level[:, 0], 9)
    assert not torch.equal(same_levels.masked, trained.masked)


@pytest.mark.parametrize("count", [0, 1, 3, 11])
def test_masked_tail(count):
    tokens = clean_tokens(2, 12)
    batch = CardObjective().masked_tail(samples_of(tokens), count)
    assert batch.masked.sum(1).tolist() == [count, count]
    assert not batch.masked[:, : 12 - count].any()
    assert torch.equal(batch.weights, torch.ones(2, 12))
    # The k-th token of the block is predicted after k - 1 masks, the first from the last clean token.
    for k, output in enumerate(range(11 - count, 12), start=1):
        assert batch.masked[0, : output + 1].sum() == k - 1
        assert torch.equal(batch.targets[:, output], tokens[:, output + 1])


@pytest.mark.parametrize("count", [-1, 12])
def test_masked_tail_leaves_the_first_token(count):
    with pytest.raises(ValueError, match="from 0 to 11"):
        CardObjective().masked_tail(samples_of(clean_tokens(2, 12)), count)


@pytest.mark.parametrize(
    "key, value",
    [
        ("tail_factor", 0.99),
        ("tail_factor", math.inf),
        ("tail_factor", "1.5"),
        ("decay", -0.1),
        ("decay", 1.1),
        ("decay", math.nan),
        ("beta", 0.0),
        ("beta", -1.0),
        ("beta", True),
        ("min_noise", -0.1),
        ("max_noise", 1.1),
        ("masking", "random"),
        ("reweight", "yes"),
        ("masked_weight", -1.0),
        ("masked_weight", math.inf),
    ],
)
def test_bad_parameters_name_the_key(key, value):
    with pytest.raises(ConfigurationError, match=rf"objective\.{key} is .*valid"):
        registry.create("card", **{key: value})


def test_noise_range_in_the_wrong_order():
    with pytest.raises(ConfigurationError, match=r"objective\.max_noise is 0\.3; .* from 0\.5 to 1"):
        CardObjective(min_noise=0.5, max_noise=0.3)


def test_weights_of_masked_inputs_want_no_weights_by_context():
    with pytest.raises(ConfigurationError, match=r"masked_weight is 2\.0, which objective\.reweight=true does not use"):
        CardObjective(masked_weight=2.0)


def test_registry():
    assert registry.create("card", tail_factor=2, mask_id=9) == CardObjective(tail_factor=2.0, mask_id=9)
    assert registry.create("ar") == ArObjective()
    assert {registry.create(name).attention for name in ("card", "ar")} == {Causal()}
    with pytest.raises(ConfigurationError, match=r"objective\.name is 'crad'; valid are card, ar, mdlm, bd3lm"):
        registry.create("crad")
    with pytest.raises(ConfigurationError, match=r"objective\.dekay is no key of objective\.name card; its keys: "):
        registry.create("card", dekay=0.5)
    with pytest.raises(ConfigurationError, match=r"objective\.decay is no key of objective\.name ar; its keys: none"):
        registry.create("ar", decay=0.5)


def test_one_input_position_is_too_short_for_card():
    tokens = torch.tensor([[1, 2]])
    with pytest.raises(ConfigurationError, match=r"model\.length is 1"):
        CardObjective().corrupt(samples_of(tokens, torch.tensor([0]), torch.tensor([0])), 0)
    assert ArObjective().corrupt(samples_of(tokens, torch.tensor([0]), torch.tensor([0])), 0).inputs.tolist() == [[1]]


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"masking": "spans", "max_noise": 0.3}, "objective.max_noise is 0.3, which objective.masking=spans"),
        ({"masking": "spans", "tail_factor": 2.0}, "objective.tail_factor is 2.0"),
        ({"span_rate": 0.1}, "objective.span_rate is 0.1, which objective.masking=soft_tail"),
        ({"masking": "uniform", "span_length": 2}, "objective.span_length is 2"),
        ({"masking": "spans", "span_length": 0}, "objective.span_length is 0; valid is an integer of at least 1"),
        ({"masking": "spans", "span_length": True}, "objective.span_length is True"),
        ({"masking": "spans", "span_rate": 0.0}, "objective.span_rate is 0.0"),
        ({"masking": "spans", "span_rate": 1.5}, "objective.span_rate is 1.5"),
    ],
)
def test_keys_that_the_masking_does_not_use_and_ranges_of_spans(settings, words):
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        CardObjective(**settings)


def test_spans_are_evaluated_behind_a_block_of_masks_but_at_no_noise_level():
    objective = CardObjective(masking="spans")
    assert len(objective.probes(16)) == 1
    tokens = clean_tokens(2, 16)
    with pytest.raises(ValueError, match="no noise level"):
        objective.at_noise_level(samples_of(tokens), torch.zeros(2), 0)
