"""The bounds of MDLM and BD3-LM are what they claim: against enumeration of every mask and every order."""

import itertools
import math

import pytest
import torch

from card_scale.objectives.block_diffusion import BlockDiffusionObjective
from card_scale.objectives.masked_diffusion import SMALLEST_MASK_RATE
from card_scale.objectives.mdlm import MdlmObjective
from tests.objectives import enumeration
from tests.objectives.enumeration import TableModel
from tests.objectives.samples import samples_of

# (letters, length, block): block 0 is MDLM.
SIZES = [(3, 4, 0), (4, 3, 0), (3, 5, 0), (3, 4, 2), (4, 3, 1), (2, 6, 3), (3, 4, 4)]
BATCH = 16


def model_of(letters, length, block, seed=0):
    return TableModel.random(letters, length, block or length, seed)


def objective_of(letters, block):
    return BlockDiffusionObjective(block=block, mask_id=letters) if block else MdlmObjective(mask_id=letters)


def text_of(letters, length, seed=1):
    return tuple(torch.randint(0, letters, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


def drawn(model, text, method, batches, batch_size=BATCH, seed=3):
    """Return float64 [batches, batch size]: nats per sample by ``method`` (corrupt or likelihood) of an objective."""
    count = batches * batch_size
    ids = torch.arange(count)
    # The last of the L + 1 tokens of a sample is no input.
    tokens = torch.tensor((*text, 0)).expand(count, -1)
    batch = method(samples_of(tokens, ids, ids // 1000, ids, batch_size), seed)
    return (model.token_losses(batch) * batch.weights.double()).sum(1).view(batches, batch_size)


@pytest.mark.parametrize("letters, length, block", SIZES)
@pytest.mark.parametrize("purpose", ["corrupt", "likelihood"])
def test_the_estimate_is_unbiased(letters, length, block, purpose):
    model, text = model_of(letters, length, block), text_of(letters, length)
    method = getattr(objective_of(letters, block), purpose)
    means = drawn(model, text, method, batches=1 << 15).mean(1)
    error = (means.std() / math.sqrt(len(means))).item()
    # Blocks of one token have no noise and no mean over mask rates.
    expected = enumeration.bound(model, text, 0.0 if block == 1 else SMALLEST_MASK_RATE)
    assert 4 * error < 0.01 * expected
    assert means.mean().item() == pytest.approx(expected, abs=4 * error + 1e-6)


def test_a_wrong_weight_or_rate_would_show():
    """The comparison above is sharp enough for the mistakes that are easy to make."""
    letters, length = 3, 4
    model, text = model_of(letters, length, 0), text_of(letters, length)
    expected = enumeration.bound(model, text, SMALLEST_MASK_RATE)
    rows = 1 << 18
    ids = torch.arange(rows)
    tokens = torch.tensor((*text, 0)).expand(rows, -1)
    batch = MdlmObjective(mask_id=letters).likelihood(samples_of(tokens, ids, ids, ids, BATCH), 3)
    losses = model.token_losses(batch) * batch.masked
    rates = batch.noise_level.double()
    shares = batch.masked[:, 1:].double().mean(1, keepdim=True).clamp(min=1e-9)
    # Unweighted; weight by the realised share; the log-linear schedule's (1 - 0.001 t) forgotten in rate or weight.
    for weights in (torch.ones_like(rates), 1 / shares, 1 / (0.95 * rates + 0.05)):
        assert (losses * weights).sum(1).mean().item() != pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("block", [0, 4])
def test_stratified_levels_make_a_batch_vary_less(block):
    """A masked token costs as many nats as other tokens of its block are masked: the loss varies with the level."""
    letters, length = 2, 8

    def variance(batch_size):
        """Of the mean over 16 samples."""
        count = 1 << 14
        ids = torch.arange(count)
        tokens = torch.zeros((count, length + 1), dtype=torch.int64)
        batch = objective_of(letters, block).likelihood(samples_of(tokens, ids, ids, ids, batch_size), 5)
        by_block = batch.masked.unflatten(1, (-1, block or length))
        losses = (by_block * (by_block.sum(2, keepdim=True) - 1)).flatten(1)
        return (losses * batch.weights.double()).sum(1).view(-1, BATCH).mean(1).var().item()

    # A batch of one sample has a rotation of its own: levels independent of the other samples'.
    assert variance(BATCH) < 0.85 * variance(1)


@pytest.mark.parametrize("letters, length, block", [(3, 4, 0), (3, 4, 2), (2, 6, 3), (2, 8, 2)])
def test_the_scatter_of_samples_bounds_that_of_their_mean(letters, length, block):
    """The standard error of an evaluation takes the samples of a draw for independent, and may err upwards only."""
    model, text = model_of(letters, length, block), text_of(letters, length)
    draws = drawn(model, text, objective_of(letters, block).likelihood, batches=1 << 11, batch_size=24)
    # The variance of a variance over 2048 draws: 3 % each way.
    assert draws.mean(1).var() < 1.09 * draws.var() / 24


@pytest.mark.parametrize("letters, length, block", SIZES)
def test_the_bound_is_the_mean_over_orders_and_above_the_likelihood(letters, length, block):
    model = model_of(letters, length, block)
    for text in itertools.islice(itertools.product(range(letters), repeat=length), 0, None, 7):
        mean, exact = enumeration.over_orders(model, text)
        nelbo = enumeration.bound(model, text, 0.0)
        assert nelbo == pytest.approx(mean, rel=1e-12)
        if block == 1:
            assert nelbo == pytest.approx(exact, rel=1e-12)
        else:
            assert nelbo > exact


@pytest.mark.parametrize("letters, length, block", [(3, 4, 0), (3, 4, 2), (2, 6, 3)])
def test_a_consistent_model_has_no_gap(letters, length, block):
    """With the conditionals of one joint distribution every order gives its likelihood, so the NELBO does.

    Above 0.001 only, the mean over texts is higher, by less than a thousandth: where much is seen, guessing is easy.
    """
    block = block or length
    shape = (letters,) * length
    joint = torch.rand(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64) ** 4
    joint = joint / joint.sum()
    table = torch.zeros(((letters + 1) ** length, length, letters), dtype=torch.float64)
    for seen in itertools.product(range(letters + 1), repeat=length):
        index = sum(letter * (letters + 1) ** place for place, letter in enumerate(seen))
        for position in range(length):
            end = (position // block + 1) * block
            given = joint.sum(tuple(range(end, length))) if end < length else joint
            if seen[position] != letters or any(letter == letters for letter in seen[: end - block]):
                continue
            visible = tuple(slice(None) if letter == letters else letter for letter in seen[:end])
            free = [place for place in range(end) if seen[place] == letters]
            others = tuple(axis for axis, place in enumerate(free) if place != position)
            weights = given[visible].sum(others) if others else given[visible]
            table[index, position] = (weights / weights.sum()).log()
    model = TableModel(letters, length, block, table)
    first = joint.sum(tuple(range(1, length)))
    mean_low = mean_nll = 0.0
    for text in itertools.product(range(letters), repeat=length):
        nll = -(joint[text] / first[text[0]]).log().item()
        assert enumeration.bound(model, text, 0.0) == pytest.approx(nll, rel=1e-9)
        mean_nll += joint[text].item() * nll
        mean_low += joint[text].item() * enumeration.bound(model, text, SMALLEST_MASK_RATE)
    assert mean_nll < mean_low < 1.001 * mean_nll
