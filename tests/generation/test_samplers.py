"""What samplers draw is distributed as it should: against full enumeration over a toy vocabulary, by chi-square."""

import itertools

import pytest
import torch
from scipy import stats

from card_scale.generation import generate
from tests.generation.conftest import make_model

VOCABULARY = 7
MASK_ID = 4
ALLOWED = [token for token in range(VOCABULARY) if token != MASK_ID]
COUNT = 4000
START = [1, 2]


def toy(block=1):
    return make_model(4.0, seed=3, rows=8, vocabulary=VOCABULARY, length=12, block=block, dtype=torch.float32)


def conditional(model, tokens, place):
    """Probabilities of the token that output ``place`` is about."""
    return torch.softmax(model.logits(torch.tensor([tokens]))[0, place].double(), -1).tolist()


def exact_autoregressive(model, length):
    """{completion: probability}."""
    found = {(): 1.0}
    for _ in range(length):
        found = {
            (*done, token): probability * chances[token]
            for done, probability in found.items()
            for chances in [conditional(model, [*START, *done], -1)]
            for token in ALLOWED
        }
    return found


def exact_any_order(model, length, groups):
    """{completion: probability} where the groups of positions are unmasked in a random order, each in one step.

    ``groups`` lists the orders, all equally likely; each order is a list of groups.
    """
    total: dict[tuple, float] = {}
    for order in groups:
        found = {(MASK_ID,) * length: 1.0 / len(groups)}
        for group in order:
            grown: dict[tuple, float] = {}
            for state, probability in found.items():
                context = [*START, *state]
                context += [MASK_ID] * (-len(context) % model.shape.block if model.shape.block < 12 else 0)
                chances = [conditional(model, context, len(START) + place) for place in group]
                for tokens in itertools.product(ALLOWED, repeat=len(group)):
                    new, weight = list(state), probability
                    for place, token, chance in zip(group, tokens, chances, strict=True):
                        new[place] = token
                        weight *= chance[token]
                    grown[tuple(new)] = grown.get(tuple(new), 0.0) + weight
            found = grown
        for state, probability in found.items():
            total[state] = total.get(state, 0.0) + probability
    return total


def check_distribution(drawn, expected):
    """The counts of what was drawn against probabilities; rare outcomes are pooled."""
    assert sum(expected.values()) == pytest.approx(1.0)
    common = [outcome for outcome, probability in expected.items() if probability * COUNT >= 8]
    observed = [drawn.count(outcome) for outcome in common]
    chances = [expected[outcome] for outcome in common]
    if len(common) < len(expected):
        observed.append(COUNT - sum(observed))
        chances.append(1.0 - sum(chances))
    assert sum(observed) == COUNT
    assert len(common) > 8, "the test must be able to fail"
    assert stats.chisquare(observed, [chance * COUNT for chance in chances]).pvalue > 1e-3


def draw(model, length, **options):
    found = generate(model, [START] * COUNT, new_tokens=length, temperature=1.0, seed=11, **options)
    return [tuple(one.tokens) for one in found]


@pytest.mark.parametrize("options", [{"method": "ar"}, {"method": "self_verified", "drafts": 2, "input_cost": 0.0}])
def test_autoregressive_and_self_verified_sampling(options):
    model = toy()
    check_distribution(draw(model, 3, **options), exact_autoregressive(model, 3))


def test_first_hitting_sampler_of_block_diffusion():
    model = toy(block=4)
    orders = [[[a], [b]] for a, b in itertools.permutations(range(2))]
    check_distribution(draw(model, 2, method="bd3lm"), exact_any_order(model, 2, orders))


def test_ancestral_sampler_one_at_a_time():
    model = toy(block=12)
    orders = [[[a], [b], [c]] for a, b, c in itertools.permutations(range(3))]
    check_distribution(draw(model, 3, method="mdlm"), exact_any_order(model, 3, orders))


def test_ancestral_sampler_in_two_steps():
    # Each position falls into one of two steps: all together in either (1/4 each), or one before the other.
    model = toy(block=12)
    orders = [[[0, 1]], [[0, 1]], [[0], [1]], [[1], [0]]]
    drawn = draw(model, 2, method="mdlm", max_passes=2)
    check_distribution(drawn, exact_any_order(model, 2, orders))
    found = generate(model, [START] * 200, new_tokens=2, method="mdlm", max_passes=2)
    assert {one.passes for one in found} == {1, 2}


def test_filters_keep_what_they_say():
    model = toy()
    chances = conditional(model, START, -1)
    ranked = sorted(ALLOWED, key=lambda token: -chances[token])
    drawn = {tokens[0] for tokens in draw(model, 1, method="ar", top_k=2)}
    assert drawn == set(ranked[:2])
    reach = chances[ranked[0]] + chances[ranked[1]] / 2
    assert {tokens[0] for tokens in draw(model, 1, method="ar", top_p=reach)} == set(ranked[:2])
    assert {tokens[0] for tokens in draw(model, 1, method="ar", top_p=chances[ranked[0]] / 2)} == {ranked[0]}
