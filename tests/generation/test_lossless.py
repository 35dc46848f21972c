"""What must equal autoregressive decoding token by token does, and that is a loop over full recomputations."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from card_scale.generation import generate, loop, methods
from card_scale.generation.batch_pass import run_pass
from card_scale.generation.sampling import sequence_keys
from card_scale.objectives import noise
from tests.generation.conftest import SHAPE, make_model, prompt

PROMPTS = [prompt(5, 1), prompt(1, 2), prompt(12, 3), [], prompt(5, 1)]
FULL_LENGTH = SHAPE.length - 12
"""New tokens with which the longest prompt fills the model's length."""


def tokens_of(model, prompts=PROMPTS, new_tokens=30, **options):
    return [one.tokens for one in generate(model, prompts, new_tokens=new_tokens, **options)]


def autoregressive_loop(model, start, count, temperature, seed, key):
    """One token at a time, nothing cached; sampled by the exponential race that the Gumbel trick is."""
    tokens = list(start) or [3]
    for _ in range(count):
        logits = model.logits(torch.tensor([tokens]))[0, -1].double()
        if temperature == 0:
            tokens.append(int(logits.argmax()))
            continue
        place = torch.tensor([len(tokens)])
        draws = noise.uniforms(seed, torch.tensor([key]), place, len(logits), noise.Stream.GENERATION)[0]
        rates = torch.softmax(logits / temperature, 0)
        waits = [
            -math.log(u + 2.0**-25) / p if p > 0 else math.inf
            for u, p in zip(draws.tolist(), rates.tolist(), strict=True)
        ]
        tokens.append(waits.index(min(waits)))
    return tokens[len(start) or 1 :]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("scale", [1.0, 2.0, 5.0, 50.0], ids=lambda scale: f"weights x {scale}")
def test_autoregressive_decoding_is_the_loop(scale, temperature):
    model = make_model(scale)
    expected = [
        autoregressive_loop(model, start, 20, temperature, 3, key)
        for start, key in zip(PROMPTS, sequence_keys(PROMPTS), strict=True)
    ]
    assert tokens_of(model, new_tokens=20, method="ar", temperature=temperature, seed=3) == expected


@given(
    scale=st.sampled_from([1.0, 2.0, 5.0, 50.0]),
    drafts=st.integers(1, 7),
    candidates=st.integers(1, 3),
    copies=st.sampled_from([0, 1, 8]),
    input_cost=st.sampled_from([None, 0.0, 0.03, 1.0]),
    temperature=st.sampled_from([0.0, 0.5, 1.0]),
    filters=st.sampled_from([{}, {"top_p": 0.8}, {"top_k": 5}, {"repetition_penalty": 1.3}]),
    seed=st.integers(0, 99),
    new_tokens=st.integers(1, 30) | st.just(FULL_LENGTH),
)
@settings(max_examples=40)
def test_self_verified_equals_autoregressive(
    scale, drafts, candidates, copies, input_cost, temperature, filters, seed, new_tokens
):
    model = make_model(scale, kv_heads=1 if seed % 2 else 3)
    options = {"temperature": temperature, "seed": seed, **filters}
    plain = generate(model, PROMPTS, new_tokens=new_tokens, method="ar", **options)
    verified = generate(
        model,
        PROMPTS,
        new_tokens=new_tokens,
        method="self_verified",
        drafts=drafts,
        candidates=candidates,
        copies=copies,
        input_cost=input_cost,
        **options,
    )
    assert [one.tokens for one in verified] == [one.tokens for one in plain]
    assert all(one.passes <= other.passes for one, other in zip(verified, plain, strict=True))
    assert all(one.commit_passes == sorted(one.commit_passes) for one in verified)


def test_right_drafts_save_passes():
    # A model that says the same token whatever it reads: all drafts are right.
    model = make_model(0.0)
    with torch.no_grad():
        model.embedding.weight.fill_(1.0)
        model.head.weight[7] = 1.0
    options = {"new_tokens": 40, "method": "self_verified", "drafts": 4, "input_cost": 0.0}
    (one,) = generate(model, [prompt(3)], copies=0, **options)
    assert one.tokens == [7] * 40
    # The first pass has no drafts to check, each further one wins five tokens.
    assert one.passes == 1 + math.ceil(39 / 5)
    assert one.commit_passes[:7] == [1, 2, 2, 2, 2, 2, 3]
    # Once two tokens are known that were there before, eight more are copied behind the four.
    (copying,) = generate(model, [prompt(3)], copies=8, **options)
    assert copying.tokens == one.tokens
    assert copying.passes == 2 + math.ceil(34 / 13)


@pytest.mark.parametrize("device, batch, most", [("cpu", 1, 70), ("cpu", 4, 90), ("cpu", 8, 150), ("cuda", 16, 70)])
def test_drafts_that_are_right_are_not_given_up_in_a_batch(monkeypatch, device, batch, most):
    """At the costs of a device, which has other things to do here."""
    monkeypatch.setattr(methods, "OF_DEVICE", {"cpu": methods.OF_DEVICE[device]})
    model = make_model(0.0, length=310)
    with torch.no_grad():
        model.embedding.weight.fill_(1.0)
        model.head.weight[7] = 1.0
    prompts = [prompt(3, seed) for seed in range(batch)]
    found = generate(model, prompts, method="self_verified", new_tokens=300, copies=0)
    assert max(one.passes for one in found) <= most


@pytest.mark.parametrize("batch", [1, 4])
def test_drafts_that_are_wrong_are_given_up(monkeypatch, batch):
    read = counted(monkeypatch, lambda plan: len(plan.tokens))
    model = make_model(1.0, length=310)
    prompts = [prompt(3, seed) for seed in range(batch)]
    found = generate(model, prompts, method="self_verified", new_tokens=300, copies=0, temperature=5.0)
    assert min(one.passes for one in found) > 280
    assert sum(inputs > 1 for inputs in read) < 0.2 * len(read)


def counted(monkeypatch, inputs) -> list[int]:
    """A list that takes ``inputs(plan)`` of each plan of every pass from now on."""
    read: list[int] = []

    def counting_pass(model, plans, cache):
        read.extend(map(inputs, plans))
        return run_pass(model, plans, cache)

    monkeypatch.setattr(loop, "run_pass", counting_pass)
    return read


def test_every_token_is_read_once_as_a_clean_one(monkeypatch):
    read = counted(monkeypatch, lambda plan: len(plan.tokens) - len(plan.read) + 1)
    for method in ("ar", "self_verified"):
        read.clear()
        (one,) = generate(make_model(2.0), [prompt(7)], method=method, new_tokens=25, candidates=1)
        # The prompt at first, then the one token whose output is the next pass's first.
        assert read == [7] + [1] * (one.passes - 1)


def test_another_candidate_is_read_again_as_a_clean_token(monkeypatch):
    read = counted(monkeypatch, lambda plan: len(plan.tokens) - len(plan.read) + 1)
    options = {"method": "self_verified", "new_tokens": 25, "copies": 0, "input_cost": 0.0}
    (plain,) = generate(make_model(2.0), [prompt(7)], candidates=1, **options)
    read.clear()
    (one,) = generate(make_model(2.0), [prompt(7)], candidates=4, **options)
    assert one.tokens == plain.tokens
    assert one.passes < plain.passes
    assert set(read[1:]) == {1, 2}


def test_clean_blocks_are_read_once(monkeypatch):
    read = counted(monkeypatch, lambda plan: len(plan.tokens))
    generate(make_model(block=4, in_place=True), [prompt(9)], method="bd3lm", new_tokens=7)
    # Two clean blocks of the prompt with the third, of which one token is known; then that block with the fourth.
    assert read == [12, 4, 4, 8, 4, 4, 4]


@given(
    scale=st.sampled_from([2.0, 50.0]),
    window=st.integers(1, 9),
    tau=st.sampled_from([1.0, 1.5]),
    new_tokens=st.integers(1, 30),
)
@settings(max_examples=12)
def test_card_that_is_never_sure_is_greedy(scale, window, tau, new_tokens):
    model = make_model(scale)
    expected = generate(model, PROMPTS, new_tokens=new_tokens, method="ar")
    found = generate(model, PROMPTS, new_tokens=new_tokens, method="card", drafts=window, tau=tau)
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    assert [one.passes for one in found] == [new_tokens] * len(PROMPTS)


def test_what_a_prompt_gets_does_not_depend_on_the_batch():
    model = make_model(2.0)
    for method in ("ar", "self_verified", "card"):
        options = {"method": method, "temperature": 1.0, "seed": 5, "tau": 0.3}
        together = tokens_of(model, **options)
        for number, start in enumerate(PROMPTS[:4]):
            assert tokens_of(model, [start], **options) == [together[number]]
        assert tokens_of(model, [PROMPTS[0], PROMPTS[0]], **options) == [together[0], together[4]]
        assert together[0] != together[4], "a second equal prompt has other noise"
        assert tokens_of(model, **options | {"seed": 6}) != together
