"""Options outside their ranges, prompts that do not fit, stops, listeners, and CARD's decoding by its own rules."""

import re

import numpy as np
import pytest
import torch

from card_scale.errors import ConfigurationError, NumericError
from card_scale.generation import generate
from card_scale.generation.sampling import Chooser, Sampling
from tests.generation.conftest import MASK_ID, SHAPE, make_model, prompt


@pytest.mark.parametrize(
    "options, words",
    [
        ({"leniency": 1.5}, "leniency is 1.5; valid is from 0 (lossless) to 1 (any draft)"),
        ({"candidates": 0}, "candidates is 0; valid is from 1 to 8"),
        ({"method": "beam"}, "method is 'beam'; valid are ar, self_verified, card, bd3lm, mdlm, armd"),
        ({"drafts": 0}, "drafts (K) is 0; valid is from 1 to 128"),
        ({"drafts": 10**5}, "drafts (K) is 100000"),
        ({"copies": -1}, "copies is -1; valid is from 0 to 128"),
        ({"input_cost": float("nan")}, "input_cost is nan"),
        ({"stop_strings": "self"}, "stop_strings is the text 'self'"),
        ({"prompts": "def"}, "prompts is a text"),
        ({"prompts": ["def"]}, "prompt 0 is 'def'; valid is a list of token ids"),
        ({"prompts": [1, 2]}, "prompt 0 is 1; valid is a list of token ids"),
        ({"prompts": [[1.5]]}, "prompt 0 is [1.5]"),
        ({"tau": -0.1}, "tau is -0.1"),
        ({"tau": 1.5, "leftmost": False, "method": "card"}, "tau is 1.5; valid is a probability from 0 to 1"),
        ({"tau": float("nan")}, "tau is nan"),
        ({"max_passes": 0}, "max_passes (T_max) is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"input_cost": -1.0}, "input_cost is -1.0"),
        ({"strides": 0, "method": "armd_strided"}, "strides (S) is 0; valid is at least 1"),
        ({"strides": 2, "method": "armd_strided"}, "strides (S) 2 does not divide the 3 new tokens"),
        ({"new_tokens": 0}, "new_tokens is 0"),
        ({"new_tokens": 44}, "prompt 0 has 5 tokens; with 44 new ones that is more than the model's length 48"),
        ({"prompts": [[1], [2, 29]]}, "prompt 1 holds token 29; valid are 0 to 28 without [MASK] (4)"),
        ({"prompts": [[MASK_ID]]}, "prompt 0 holds token 4"),
        ({"stop_strings": ("x",)}, "stop_strings need a model with a tokenizer"),
    ],
)
def test_what_cannot_be_is_one_clear_line(options, words):
    arguments = {"method": "ar", "new_tokens": 3, "prompts": [prompt(5)]} | options
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        generate(make_model(), arguments.pop("prompts"), **arguments)


def test_prompts_may_be_arrays_and_tensors():
    model, options = make_model(), {"method": "ar", "new_tokens": 5}
    expected = [one.tokens for one in generate(model, [[5, 6, 7], [8, 9, 10]], **options)]
    rows = np.array([[5, 6, 7], [8, 9, 10]])
    for prompts in (rows, torch.tensor(rows), list(rows), list(torch.tensor(rows)), tuple(map(tuple, rows))):
        assert [one.tokens for one in generate(model, prompts, **options)] == expected


@pytest.mark.parametrize("method", ["ar", "self_verified", "card"])
def test_logits_that_are_not_finite_are_an_error(method):
    model = make_model()
    with torch.no_grad():
        model.final_norm.weight[0] = torch.nan
    with pytest.raises(NumericError, match="not finite"):
        generate(model, [[5]], method=method, new_tokens=3)


@pytest.mark.parametrize(
    "tokens", [[[1]], torch.tensor([1]), torch.tensor([[1.0]]), torch.tensor([[64]]), torch.zeros(0)]
)
def test_logits_of_what_are_no_tokens(tokens):
    with pytest.raises(ValueError, match="tokens"):
        make_model().logits(tokens)


def test_a_model_is_decoded_only_as_it_was_trained():
    model = make_model()
    model.objective, model.decoders = "mdlm", ("mdlm",)
    with pytest.raises(ConfigurationError, match=re.escape("objective.name mdlm; valid for it: mdlm")):
        generate(model, [[1]], method="ar", new_tokens=1)


def test_a_stop_token_ends_its_own_sequence_alone():
    model = make_model(2.0)
    starts = [prompt(4, seed) for seed in range(6)]
    whole = generate(model, starts, method="ar", new_tokens=20, temperature=1.0)
    stop = whole[0].tokens[7]
    for method in ("ar", "self_verified"):
        found = generate(model, starts, method=method, new_tokens=20, temperature=1.0, stop_tokens=(stop,))
        for one, full in zip(found, whole, strict=True):
            end = full.tokens.index(stop) + 1 if stop in full.tokens else 20
            assert one.tokens == full.tokens[:end]
            assert one.stopped == (str(stop) if stop in full.tokens else None)
    assert len({len(one.tokens) for one in found}) > 1


@pytest.mark.parametrize("options", [{"method": "self_verified"}, {"method": "card", "tau": 0.1, "drafts": 6}])
def test_a_listener_hears_every_token_once(options):
    heard: dict[int, list] = {0: [], 1: []}
    found = generate(
        make_model(2.0),
        [prompt(4), prompt(9)],
        new_tokens=25,
        listener=lambda index, tokens, passes: heard[index].extend(zip(tokens, passes, strict=True)),
        **options,
    )
    for index, one in enumerate(found):
        assert heard[index] == list(zip(one.tokens, one.commit_passes, strict=True))
        assert max(one.commit_passes) == one.passes


def test_nothing_to_do_is_nothing():
    assert generate(make_model(), [], method="ar", new_tokens=3) == []


def papers_loop(model, start, count, window, tau, most):
    """CARD's decoding as the paper has it, over full recomputations: blocks of masks, committed where sure."""
    tokens, passes = list(start), 0
    while len(tokens) < len(start) + count:
        size = min(window, len(start) + count - len(tokens))
        block: list[int | None] = [None] * size
        for step in range(1, most + 1):
            read = tokens + [MASK_ID if slot is None else slot for slot in block]
            chances = torch.softmax(model.logits(torch.tensor([read]))[0].double(), -1)
            passes += 1
            for place in range(size):
                best = chances[len(tokens) + place - 1].max(0)
                if block[place] is None and (best.values > tau or step == most):
                    block[place] = int(best.indices)
            if None not in block:
                break
        tokens += block
    return tokens[len(start) :], passes


@pytest.mark.parametrize("tau, most", [(0.15, 3), (0.3, 8), (0.0, 5), (1.0, 2)])
def test_blocks_are_filled_as_in_the_paper(tau, most):
    model = make_model(3.0)
    starts = [prompt(3, 1), prompt(8, 2), prompt(8, 3)]
    found = generate(model, starts, method="card", new_tokens=21, drafts=5, tau=tau, max_passes=most, leftmost=False)
    expected = [papers_loop(model, start, 21, 5, tau, most) for start in starts]
    assert [(one.tokens, one.passes) for one in found] == expected


def test_a_position_is_taken_after_so_many_passes():
    (one,) = generate(make_model(), [prompt(3)], method="card", new_tokens=40, drafts=8, tau=1.0, max_passes=2)
    # Nothing is sure: the leftmost in each pass, and in every second one all that have seen two.
    assert one.passes <= 2 * (40 // 8) + 1
    (slow,) = generate(make_model(), [prompt(3)], method="card", new_tokens=40, drafts=8, tau=1.0)
    assert slow.passes == 40


def test_a_repetition_penalty_keeps_from_looping():
    model = make_model(50.0)
    start = [prompt(4)]
    (plain,) = generate(model, start, method="ar", new_tokens=40)
    (penalised,) = generate(model, start, method="ar", new_tokens=40, repetition_penalty=5.0)
    assert len(set(penalised.tokens)) > len(set(plain.tokens))
    assert SHAPE.mask_id not in penalised.tokens


def test_a_repetition_penalty_makes_what_was_there_less_likely():
    logits = torch.tensor([[2.0, -1.0, 0.5, -3.0, 1.5]])
    chosen, _ = Chooser(Sampling(repetition_penalty=4.0))(logits, [(0, 0)], [[0, 3, 0]])
    assert logits.tolist() == [[0.5, -1.0, 0.5, -12.0, 1.5]]
    assert chosen.tolist() == [4]


def test_a_probability_must_exceed_tau():
    model = make_model(0.0)
    with torch.no_grad():
        model.embedding.weight.fill_(1.0)
        model.head.weight[7] = 1000.0
    assert torch.softmax(model.logits(torch.tensor([[5]])), -1)[0, 0, 7] == 1.0
    options = {"method": "card", "new_tokens": 12, "drafts": 4}
    assert generate(model, [prompt(3)], tau=1.0, **options)[0].passes == 12
    assert generate(model, [prompt(3)], tau=0.999, **options)[0].passes == 3
