"""What is chosen beside the best token: the next best ones, and drafts that are nearly as good."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from card_scale.generation import generate
from card_scale.generation.sampling import Chooser, Sampling
from card_scale.objectives.noise import Stream, uniforms
from tests.generation.conftest import make_model, prompt


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@given(seed=st.integers(0, 999), others=st.integers(0, 6), ties=st.booleans())
@settings(max_examples=30, deadline=None)
def test_the_next_best_are_what_would_be_chosen_without_the_best(temperature, seed, others, ties):
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(seed))
    logits = logits.round() if ties else logits
    logits[0, 2:] = -math.inf
    places = [(5, 1), (5, 2), (6, 1)]
    sampling = Sampling(temperature=temperature, seed=seed)
    chosen, next_best = Chooser(sampling)(logits.clone(), places, None, None, others)
    left = logits.clone()
    for rank in range(others):
        left.scatter_(1, chosen[:, None], -math.inf)
        chosen, _ = Chooser(sampling)(left.clone(), places, None)
        for row in range(3):
            is_allowed = left[row].max() > -math.inf
            assert (next_best[row, rank] >= 0) == is_allowed
            if is_allowed and not (ties and temperature == 0):
                assert next_best[row, rank] == chosen[row]


@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize("leniency", [0.0, 0.3, 0.9, 1.0])
def test_a_draft_is_taken_that_is_nearly_as_good(leniency, temperature):
    logits = torch.randn(400, 6, generator=torch.Generator().manual_seed(1)).double()
    logits[:, 5] = -math.inf
    places = [(3, position) for position in range(400)]
    drafts = [position % 7 - 1 for position in range(400)]
    sampling = Sampling(temperature=temperature)
    (best, _), (found, _) = (
        Chooser(sampling, lenient)(logits.clone(), places, None, drafts) for lenient in (0, leniency)
    )
    scores = logits
    if temperature:
        draws = uniforms(0, torch.full((400,), 3), torch.arange(400), 6, Stream.GENERATION).double()
        scores = logits / temperature - (-(draws + 2.0**-25).log()).log()
    for row, draft in enumerate(drafts):
        ratio = math.exp(scores[row, draft] - scores[row, best[row]]) if 0 <= draft < 5 else 0.0
        assert found[row] == (draft if 0 <= draft < 5 and ratio >= 1 - leniency else best[row])
    assert (found == best).all() == (leniency == 0)


def test_leniency_takes_drafts_that_are_at_least_so_likely():
    model, start = make_model(2.0), prompt(5, 1)
    options = {"new_tokens": 40, "method": "self_verified", "input_cost": 0.0}
    (plain,), passes = generate(model, [start], **options), []
    for leniency in (0.0, 0.5, 0.9):
        (one,) = generate(model, [start], leniency=leniency, **options)
        logits = model.logits(torch.tensor([start + one.tokens]))[0, len(start) - 1 : -1]
        ratios = (logits.gather(1, torch.tensor(one.tokens)[:, None])[:, 0] - logits.amax(1)).exp()
        assert ratios.min() >= 1 - leniency - 1e-9
        assert (one.tokens == plain.tokens) == (leniency == 0.0)
        passes.append(one.passes)
    assert passes == sorted(passes, reverse=True)
    assert passes[2] < passes[0]
    (one,) = generate(model, [start], leniency=1.0, candidates=1, **options)
    # Every draft is taken: each pass but the first has five tokens or more.
    sizes = [one.commit_passes.count(number) for number in range(2, one.passes)]
    assert min(sizes) >= 5
    assert one.passes <= passes[2]
