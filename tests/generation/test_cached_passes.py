"""Every output of every pass, tree attention included, equals that of a full recomputation without cache."""

import pytest
import torch

from card_scale.generation import batch_pass, loop
from card_scale.generation.batch_pass import run_pass
from card_scale.generation.cache import CacheWriter
from tests.generation.conftest import make_model, prompt

METHODS = {
    "ar": ({}, {"method": "ar"}),
    "self-verified": ({}, {"method": "self_verified", "drafts": 3, "input_cost": 0.0}),
    "self-verified, sampled": ({}, {"method": "self_verified", "drafts": 5, "temperature": 1.0}),
    "card": ({}, {"method": "card", "drafts": 5, "tau": 0.3}),
    "card, the paper's": ({}, {"method": "card", "drafts": 5, "tau": 0.3, "leftmost": False}),
    "grouped heads": ({"kv_heads": 1}, {"method": "self_verified", "drafts": 2}),
    "bd3lm": ({"block": 4}, {"method": "bd3lm"}),
    "bd3lm, two steps a block": ({"block": 6}, {"method": "bd3lm", "max_passes": 2, "temperature": 1.0}),
    "mdlm": ({"block": 48}, {"method": "mdlm", "max_passes": 5}),
}


def recomputed(model, before, plan, number):
    """Logits of one output of a plan, without cache: of the tokens before and of what it sees alone."""
    place = plan.read[number]
    if plan.visible is None:
        seen = range(len(plan.tokens)) if model.shape.block > 1 else range(place + 1)
    else:
        seen = plan.visible[place].nonzero()[:, 0].tolist()
    positions = [plan.positions[index] for index in seen]
    assert positions == list(range(len(before), len(before) + len(positions))), "no gap, nothing twice"
    tokens = torch.tensor([[*before, *(plan.tokens[index] for index in seen)]])
    return model.logits(tokens)[0, plan.positions[place]]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "few shapes"])
@pytest.mark.parametrize("name", METHODS)
def test_every_output_equals_a_full_recomputation(monkeypatch, name, compiled):
    sizes, options = METHODS[name]
    model = make_model(scale=2.0, **sizes)
    # The shapes of a compiled pass, without its compiler.
    model.is_compiled = compiled
    monkeypatch.setattr(batch_pass, "SPAN", 8)
    prompts = [prompt(3, 1), prompt(9, 2), [], prompt(9, 3)]
    known: list[list[int]] = []
    checked = []

    def checking_pass(model, plans, cache):
        lengths = [0] * len(plans) if cache is None else cache.lengths[: len(plans)]
        before = [row[:length] for row, length in zip(known, lengths, strict=True)]
        logits, counts = run_pass(model, plans, cache)
        expected = [
            recomputed(model, tokens, plan, number)
            for tokens, plan in zip(before, plans, strict=True)
            for number in range(len(plan.read))
        ]
        torch.testing.assert_close(logits, torch.stack(expected), rtol=1e-5, atol=1e-5)
        checked.append(len(expected))
        return logits, counts

    one_pass = loop._one_pass

    def remembering_pass(model, running, *rest):
        known[:] = [list(decoder.tokens) for decoder in running]
        return one_pass(model, running, *rest)

    monkeypatch.setattr(loop, "run_pass", checking_pass)
    monkeypatch.setattr(loop, "_one_pass", remembering_pass)
    found = loop.generate(model, prompts, new_tokens=14, **options)
    assert [len(one.tokens) for one in found] == [14] * 4
    assert len(checked) == max(one.passes for one in found)


def test_a_cache_that_is_too_small_is_an_error():
    model = make_model()
    with pytest.raises(ValueError, match="position 5 does not fit into a cache of 4"):
        CacheWriter(model.new_cache(1, 4), 5, torch.device("cpu"))


def test_a_compiled_pass_is_one_graph_and_its_shapes_are_few():
    graphs = []

    def count(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    model, plain = make_model(scale=2.0), make_model(scale=2.0)
    model.compile_passes(backend=count)
    prompts = [prompt(5, 1), prompt(9, 2)]
    options = {"method": "self_verified", "new_tokens": 30, "input_cost": 0.0, "drafts": 3}
    found = loop.generate(model, prompts, **options)
    assert [one.tokens for one in found] == [one.tokens for one in loop.generate(plain, prompts, **options)]
    # The prompts, then 4 to 16 inputs.
    assert len(graphs) <= 8 < found[0].passes


def test_batches_of_a_compiled_model_have_few_shapes_and_its_caches_one_place():
    """Whatever ends first, and however many there are: sequences that have ended are filled up to a power of two."""
    graphs = []
    model, plain = make_model(scale=2.0), make_model(scale=2.0)
    model.compile_passes(backend=lambda graph, _inputs: graphs.append(graph) or graph.forward)
    options = {"method": "self_verified", "new_tokens": 30, "input_cost": 0.0, "drafts": 3}
    for count in (5, 6, 8):
        prompts = [prompt(5 + number, number) for number in range(count)]
        found = loop.generate(model, prompts, **options)
        expected = loop.generate(plain, prompts, **options)
        assert [one.tokens for one in found] == [one.tokens for one in expected]
        assert [one.passes for one in found] == [one.passes for one in expected]
        if count == 5:
            first, places = len(graphs), [buffer.data_ptr() for buffer in model.spare_cache.keys]
            assert len({one.passes for one in found}) > 1  # they end one by one
    assert first <= 10
    assert len(graphs) <= first + 3
    assert (model.spare_cache.keys[0].shape[0], model.spare_cache.capacity) == (8, 512)
    assert [buffer.data_ptr() for buffer in model.spare_cache.keys] == places


def test_a_generation_within_another_has_a_cache_of_its_own():
    model, plain = make_model(scale=2.0), make_model(scale=2.0)
    model.compile_passes(backend=lambda graph, _inputs: graph.forward)
    options = {"method": "ar", "new_tokens": 6}
    inner = []

    def listener(*_):
        inner.append(loop.generate(model, [prompt(7, 2)], **options)[0].tokens)

    outer = loop.generate(model, [prompt(5, 1)], listener=listener, **options)
    assert outer[0].tokens == loop.generate(plain, [prompt(5, 1)], **options)[0].tokens
    assert all(tokens == loop.generate(plain, [prompt(7, 2)], **options)[0].tokens for tokens in inner)
    model.double()
    assert len(loop.generate(model, [prompt(5, 1)], **options)[0].tokens) == 6
