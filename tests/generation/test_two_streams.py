"""ARMD's decoding: at every pass the logits of the paper's words in float64, whatever stride, batch and prompt."""

import pytest
import torch

from card_scale.errors import ConfigurationError
from card_scale.generation import generate, loop
from card_scale.generation.batch_pass import run_pass
from tests.generation.conftest import MASK_ID, make_model, prompt, whole_model_weights
from tests.model import reference_gpt


def model_of(**sizes):
    return make_model(scale=2.0, two_streams=True, layers=3, **sizes)


def reference(model, blocks, tokens):
    """Return the logits [L, vocabulary] of an order.

    ``blocks`` are lists of positions above 0, in their order, ``tokens`` what stands at positions, the last block's
    excepted.
    """
    order = [place for block in blocks for place in block]
    of = {place: number for number, block in enumerate(blocks, 1) for place in block} | {0: 0}
    contents = [0, *order[:-1]]
    length = len(order)
    sees = torch.zeros(2 * length, 2 * length, dtype=torch.bool)
    queries_see = torch.zeros(length, length, dtype=torch.bool)
    for number, place in enumerate(order):
        for other, content in enumerate(contents):
            sees[number, length + other] = of[content] < of[place]
            sees[length + number, length + other] = of[content] <= of[contents[number]]
            queries_see[number, other] = of[order[other]] <= of[place]
    shape = model.shape
    logits = reference_gpt.two_stream_logits(
        whole_model_weights(model),
        torch.tensor([[tokens.get(place, 0) for place in contents]]),
        torch.tensor([order + contents]),
        shape.layers,
        shape.heads,
        sees,
        queries_see,
        shape.rotary_base,
        shape.norm_epsilon,
    )[0, :, : shape.vocabulary]
    logits[:, MASK_ID] = -torch.inf
    return logits.float()


@pytest.mark.parametrize("sizes", [{}, {"tied": True, "norm_epsilon": 1e-2, "layers": 5}], ids=["", "other sizes"])
def test_whole_sequences(sizes):
    model = make_model(scale=2.0, two_streams=True, **sizes)
    rows = [prompt(48, 1), prompt(48, 2)]
    found = model.logits(torch.tensor(rows))
    for row, tokens in zip(found, rows, strict=True):
        expected = reference(model, [[place] for place in range(1, 49)], dict(enumerate(tokens)))
        torch.testing.assert_close(row, expected, rtol=1e-5, atol=1e-5)


def blocks_of(prompt_length, new, strides):
    """The paper's order behind a prompt from left to right: heads one by one, then equal offsets."""
    stretch = new // strides
    begins = [prompt_length + stretch * number for number in range(strides)]
    given, heads = [[place] for place in range(1, prompt_length)], [[begin] for begin in begins]
    return given, heads + [[begin + offset for begin in begins] for offset in range(1, stretch)]


@pytest.mark.parametrize("strides", [1, 2, 3, 12])
def test_every_pass_equals_a_recomputation_without_cache(monkeypatch, strides):
    model, new = model_of(), 12
    prompts = [prompt(3, 1), prompt(9, 2), [], prompt(1, 3)]
    passes = []

    def remembering(model, plans, cache):
        logits, counts = run_pass(model, plans, cache)
        passes.append(logits.split(counts))
        return logits, counts

    monkeypatch.setattr(loop, "run_pass", remembering)
    found = generate(model, prompts, method="armd_strided", new_tokens=new, strides=strides)
    assert [one.passes for one in found] == [strides + new // strides - 1] * 4
    for row, (given, one) in enumerate(zip(prompts, found, strict=True)):
        text = [*(given or [model.shape.start_id]), *one.tokens]
        before, decided = blocks_of(len(text) - new, new, strides)
        for number, group in enumerate(decided):
            expected = reference(model, [*before, *decided[: number + 1]], dict(enumerate(text)))[-len(group) :]
            torch.testing.assert_close(passes[number][row], expected, rtol=1e-5, atol=1e-5)
            assert [text[place] for place in group] == expected.argmax(-1).tolist()
            assert {one.commit_passes[place - len(text) + new] for place in group} == {number + 1}


def test_one_stride_is_sequential_decoding():
    model, start = model_of(), prompt(7, 1)
    (found,) = generate(model, [start], method="armd_strided", new_tokens=30)
    text = list(start)
    for _ in range(30):
        text.append(int(model.logits(torch.tensor([text]))[0, -1].argmax()))
    assert found.tokens == text[7:]
    assert found.commit_passes == list(range(1, 31))


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "top_k": 9}, {"repetition_penalty": 1.5}])
def test_a_text_does_not_depend_on_its_batch(options):
    model, prompts = model_of(), [prompt(3, 1), prompt(20, 2), [], prompt(3, 4)]
    together = generate(model, prompts, method="armd_strided", new_tokens=24, strides=4, **options)
    for start, one in zip(prompts, together, strict=True):
        (alone,) = generate(model, [start], method="armd_strided", new_tokens=24, strides=4, **options)
        assert (one.tokens, one.commit_passes) == (alone.tokens, alone.commit_passes)


def test_sequences_end_at_a_stop_while_others_go_on():
    model, prompts = model_of(), [prompt(5, seed) for seed in range(6)]
    free = generate(model, prompts, method="armd_strided", new_tokens=24, strides=2, temperature=1.0)
    stop = free[2].tokens[4]
    told = []
    found = generate(
        model,
        prompts,
        method="armd_strided",
        new_tokens=24,
        strides=2,
        temperature=1.0,
        stop_tokens=(stop,),
        listener=lambda prompt, tokens, _passes: told.append((prompt, tokens)),
    )
    for number, (one, whole) in enumerate(zip(found, free, strict=True)):
        end = whole.tokens.index(stop) + 1 if stop in whole.tokens else 24
        assert one.tokens == whole.tokens[:end]
        assert [token for index, tokens in told if index == number for token in tokens] == one.tokens
    assert found[2].passes < free[2].passes


def test_it_is_not_compiled():
    with pytest.raises(ConfigurationError, match="armd decodes without compilation only"):
        model_of().compile_passes()
