"""ARMD's batches: what is read, asked and weighted, on what it depends, and what is refused."""

import pytest
import torch

from card_scale.errors import ConfigurationError
from card_scale.objectives import registry
from card_scale.objectives.armd import ArmdObjective
from card_scale.objectives.attention import BlockCausal, Causal, StrictBlockCausal
from card_scale.objectives.noise import Stream, uniforms
from tests.objectives import oracles
from tests.objectives.samples import samples_of, tensors_of
from tests.objectives.test_token_order import longest_ascent

LENGTH, ROWS = 16, 6


def text(rows=ROWS, length=LENGTH):
    return torch.randint(5, 250, (rows, length + 1), generator=torch.Generator().manual_seed(0))


def moving(count, **keys):
    return ArmdObjective(permuted=count, ar_steps=0, permute_steps=0, **keys)


def by_hand(samples, orders):
    """Return (inputs, positions, targets) token by token: each is asked at its place, after those before it."""
    inputs, positions, targets = [], [], []
    for row, order in zip(samples.tokens.tolist(), orders, strict=True):
        asked = [place + 1 for place in order]
        read = [0, *asked[:-1]]
        inputs.append([row[place] for place in read])
        positions.append(asked + read)
        targets.append([row[place] for place in asked])
    return inputs, positions, targets


def assert_is(batch, samples, orders):
    inputs, positions, targets = by_hand(samples, orders)
    assert batch.inputs.tolist() == inputs
    assert batch.positions.tolist() == positions
    assert batch.targets.tolist() == targets
    assert (batch.weights == 1).all()
    assert not batch.masked.any()
    assert not batch.noise_level.any()


@pytest.mark.parametrize("count", [1, 5, LENGTH])
def test_an_order_is_a_function_of_seed_sample_and_epoch(count):
    samples = samples_of(text(), sample_ids=torch.arange(ROWS) * 7, epochs=torch.arange(ROWS) % 2)
    batch = moving(count).corrupt(samples, 11)
    draws = [uniforms(11, samples.sample_ids, samples.epochs, LENGTH, s) for s in (Stream.ORDER, Stream.ORDER_RANKS)]
    orders = [
        oracles.order_with_moved_tokens(draws[0][row].tolist(), draws[1][row].tolist(), count) for row in range(ROWS)
    ]
    assert_is(batch, samples, orders)
    for rows in (slice(0, 1), slice(2, 5)):
        piece = moving(count).corrupt(samples.rows(rows), 11)
        for one, whole in zip(tensors_of(piece), tensors_of(batch.rows(rows)), strict=True):
            assert torch.equal(one, whole)


def test_epochs_seeds_and_evaluations_have_orders_of_their_own():
    samples = samples_of(text())
    later = samples._replace(epochs=samples.epochs + 1)
    objective = moving(LENGTH)
    first = objective.corrupt(samples, 1).positions
    assert not torch.equal(first, objective.corrupt(later, 1).positions)
    assert not torch.equal(first, objective.corrupt(samples, 2).positions)
    any_order, permuted = objective.sampled_likelihoods(LENGTH)
    assert (any_order.name, permuted.name) == ("armd/any_order_nll", "armd/permuted_nll")
    assert not torch.equal(first, any_order.corrupt(samples, 1).positions)
    assert not torch.equal(any_order.corrupt(samples, 1).positions, any_order.corrupt(later, 1).positions)
    frozen = moving(LENGTH, resample=False)
    assert torch.equal(first, frozen.corrupt(later, 1).positions)


def test_orders_in_evaluation_move_as_many_tokens_as_they_say():
    samples = samples_of(text())
    _, permuted = moving(3).sampled_likelihoods(LENGTH)
    out_of_place = moving(3).metrics[0].value(permuted.corrupt(samples, 1), torch.empty(0))
    assert out_of_place.any()
    assert not out_of_place.all()
    (any_order,) = ArmdObjective(permuted=0).sampled_likelihoods(LENGTH)
    everywhere = moving(3).metrics[0].value(any_order.corrupt(samples, 1), torch.empty(0))
    assert everywhere.float().mean() > 0.8
    # Three moved tokens leave the others in their order.
    for order in permuted.corrupt(samples, 1).positions[:, :LENGTH].tolist():
        assert longest_ascent(order) >= LENGTH - 3
    assert min(map(longest_ascent, any_order.corrupt(samples, 1).positions[:, :LENGTH].tolist())) < LENGTH - 5


def test_tokens_begin_to_move_when_they_are_told():
    objective = ArmdObjective(permuted=4, ar_steps=10, permute_steps=20)
    samples = samples_of(text())
    identity = [list(range(LENGTH))] * ROWS
    for update in (0, 9):
        assert_is(objective.corrupt(samples._replace(update=update), 1), samples, identity)
    for update, count in ((10, 1), (15, 2), (19, 3), (20, 4), (1000, 4)):
        batch = objective.corrupt(samples._replace(update=update), 1)
        assert torch.equal(batch.positions, moving(count).corrupt(samples, 1).positions)


def test_left_to_right_shares_one_row_of_positions():
    """Which costs the model nothing more than one row."""
    objective = ArmdObjective(permuted=4)
    for batch in (objective.corrupt(samples_of(text()), 1), objective.likelihood(samples_of(text()), 1)):
        assert batch.positions.stride(0) == 0
        assert_is(batch, samples_of(text()), [list(range(LENGTH))] * ROWS)


def test_strides_are_drawn_for_each_update():
    objective = ArmdObjective(permuted=0, strides=(1, 2, 4))
    strides = [objective.stride(update, 3) for update in range(3000)]
    assert {stride: round(strides.count(stride) / 3000, 1) for stride in (1, 2, 4)} == dict.fromkeys((1, 2, 4), 0.3)
    assert strides[:50] != [objective.stride(update, 4) for update in range(50)]
    samples = samples_of(text(length=8))
    update = strides.index(2)
    batch = objective.corrupt(samples._replace(update=update), 3)
    assert_is(batch, samples, [[0, 4, 1, 5, 2, 6, 3, 7]] * ROWS)
    assert batch.attention == StrictBlockCausal(2, single_heads=True)
    assert batch.positions.stride(0) == 0
    plain = objective.corrupt(samples._replace(update=strides.index(1)), 3)
    assert plain.attention is None
    assert_is(plain, samples, [list(range(8))] * ROWS)
    probes = objective.probes(8)
    assert [list(probe.results(torch.ones(8))) for probe in probes] == [["armd/stride_2_nll"], ["armd/stride_4_nll"]]
    assert probes[1].corrupt(samples, 0).attention == StrictBlockCausal(4, single_heads=True)


def test_what_it_is():
    objective = registry.create("armd", permuted=4, block=4)
    assert objective.attention == StrictBlockCausal(4)
    assert objective.attention.behind_wide_layers == BlockCausal(4)
    assert ArmdObjective().attention.behind_wide_layers == Causal()
    assert objective.likelihood_is_exact
    assert objective.scored(LENGTH) == LENGTH
    batch = objective.corrupt(samples_of(text()), 1)
    assert float(objective.normaliser(batch)) == ROWS * LENGTH
    assert not objective.metrics[0].value(batch, torch.empty(0)).any()


@pytest.mark.parametrize(
    "keys, length, message",
    [
        ({"permuted": 17}, 16, r"objective\.permuted is 17; valid is at most model\.length, 16 tokens"),
        ({"permuted": 0, "block": 3}, 16, r"objective\.block 3 does not divide model\.length 16"),
        ({"permuted": 0, "strides": (1, 4)}, 18, r"objective\.strides 4 does not divide model\.length 18"),
        (
            {"permute_steps": 10, "ar_steps": 20},
            64,
            r"objective\.permute_steps is 10; valid is an integer .* 20",
        ),
        ({"permuted": -1}, 64, r"objective\.permuted is -1; valid is an integer of at least 0"),
        ({"permuted": 0, "strides": (2, 2)}, 64, r"objective\.strides is \[2, 2\]; valid is a list of different"),
        ({"permuted": 0, "strides": ()}, 64, r"objective\.strides is \[\]; valid is a list of different numbers"),
        ({"permuted": 0, "strides": (1, 0)}, 64, r"objective\.strides is 0; valid is an integer of at least 1"),
        (
            {"strides": (1, 2)},
            64,
            r"objective\.permuted is 32, but with .*strides \[1, 2\] .* set objective\.permuted=0",
        ),
        ({"permuted": 0, "block": 2, "strides": (2,)}, 64, r"objective\.block is 2, but .* set objective\.block=1"),
        ({"resample": 1}, 64, r"objective\.resample is 1"),
    ],
)
def test_refusals(keys, length, message):
    with pytest.raises(ConfigurationError, match=message):
        ArmdObjective(**keys).check(length)
