"""ARMD on the real model: strict causality bit for bit, the words of the paper in float64, and proper distributions."""

import itertools

import pytest
import torch

from card_scale.model.query_stream import query_stream
from card_scale.model.vocabulary import Vocabulary
from card_scale.objectives.armd import ArmdObjective
from card_scale.objectives.attention import StrictBlockCausal
from tests.model import reference_gpt
from tests.model.test_gpt import float64_weights
from tests.model.test_masked_diffusion_gpt import (
    MASK_ID,
    assert_losses_and_gradients,
    clean_tokens,
    dependencies,
    logits_of,
)
from tests.objectives import oracles
from tests.objectives.samples import samples_of

LENGTH = 12
KINDS = [(1, False), (2, False), (3, True), (4, False), (4, True), (12, False)]
"""(block, single heads)."""


def in_an_order(rows=3, seed=0):
    """Return (tokens [rows, L], positions [rows, 2L]) of a random order for each row."""
    generator = torch.Generator().manual_seed(seed)
    orders = torch.stack([torch.randperm(LENGTH, generator=generator) for _ in range(rows)]) + 1
    contents = torch.cat((torch.zeros(rows, 1, dtype=torch.int64), orders[:, :-1]), 1)
    return clean_tokens(rows, LENGTH, seed), torch.cat((orders, contents), 1)


def outputs(model, tokens, positions):
    """Return logits [B, L, vocabulary]."""
    return model(tokens, positions).transpose(0, 1)


@pytest.mark.parametrize("backend", ["auto", "dense"])
@pytest.mark.parametrize("block, single_heads", KINDS)
@pytest.mark.parametrize("layers", [2, 5])
def test_an_output_depends_on_the_tokens_of_earlier_blocks_only(build, block, single_heads, backend, layers):
    """Exactly: no bit of its own token or of one beside it, through the query neither."""
    model = build(StrictBlockCausal(block, single_heads), layers=layers, attention_backend=backend)
    tokens, positions = in_an_order(1)
    sight = oracles.two_stream_sight(LENGTH, block, single_heads)
    expected = [sight[number][LENGTH:] for number in range(LENGTH)]
    assert dependencies(model, tokens, positions[0], range(LENGTH)).tolist() == expected


@pytest.mark.parametrize("block, single_heads", KINDS)
def test_losses_and_gradients_of_the_float64_decoder(build, block, single_heads):
    model = build(StrictBlockCausal(block, single_heads), layers=3)
    tokens, positions = in_an_order()
    targets = clean_tokens(3, LENGTH, 9)
    weights = float64_weights(model)
    sees = torch.tensor(oracles.two_stream_sight(LENGTH, block, single_heads))
    queries_see = torch.tensor(oracles.query_sight(LENGTH, block, single_heads))
    logits = reference_gpt.two_stream_logits(weights, tokens, positions, 3, 3, sees, queries_see)
    assert_losses_and_gradients(model, model(tokens, positions, targets), weights, logits, targets)


@pytest.mark.parametrize("block", [2, 3, 12])
def test_moving_tokens_inside_their_blocks_moves_the_outputs(build, block):
    """The order inside a block means nothing: queries and contents, permuted with their positions, permute."""
    model = build(StrictBlockCausal(block), layers=4)
    order = torch.randperm(LENGTH, generator=torch.Generator().manual_seed(3))
    # The last block's contents are not read but for all of its tokens' but the last: leave that block alone.
    numbers = torch.arange(LENGTH)
    within = torch.cat([part[torch.randperm(len(part))] for part in numbers.split(block)])
    within[-block:] = numbers[-block:]
    text = clean_tokens(1, LENGTH + 1)[0]

    def ask(order):
        contents = torch.cat((torch.tensor([0]), order[:-1] + 1))
        return outputs(model, text[contents][None], torch.cat((order + 1, contents))[None])[0]

    torch.testing.assert_close(ask(order[within]), ask(order)[within], rtol=1e-4, atol=1e-5)


def test_only_distances_count(build):
    model = build(StrictBlockCausal(), layers=4)
    tokens, positions = in_an_order()
    torch.testing.assert_close(
        outputs(model, tokens, positions + 7), outputs(model, tokens, positions), rtol=1e-4, atol=1e-4
    )
    other = positions.clone()
    other[:, LENGTH - 1] += 1  # of the last query alone
    changed = (outputs(model, tokens, other) != outputs(model, tokens, positions)).any(-1)
    assert changed.tolist() == [[False] * (LENGTH - 1) + [True]] * 3


ORDERS = [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("block", [1, 2])
def test_the_texts_of_an_order_have_probabilities_that_sum_to_one(build, order, block):
    vocabulary, length = Vocabulary(size=7, mask_id=MASK_ID), 4
    model = build(StrictBlockCausal(block), vocabulary, length=length)
    letters = [token for token in range(vocabulary.size) if token != MASK_ID]
    texts = torch.tensor([(2, *rest) for rest in itertools.product(letters, repeat=length)])
    queries = torch.tensor(order).expand(len(texts), -1) + 1
    contents = torch.cat((torch.zeros_like(queries[:, :1]), queries[:, :-1]), 1)
    with torch.no_grad():
        losses = model(texts.gather(1, contents), torch.cat((queries, contents), 1), texts.gather(1, queries)).double()
    assert torch.exp(-losses.sum(1)).sum().item() == pytest.approx(1.0, abs=1e-5)


def test_the_objectives_likelihood_is_a_distribution(build):
    vocabulary, length = Vocabulary(size=7, mask_id=MASK_ID), 4
    model = build(StrictBlockCausal(), vocabulary, length=length)
    letters = [token for token in range(vocabulary.size) if token != MASK_ID]
    texts = torch.tensor([(2, *rest) for rest in itertools.product(letters, repeat=length)])
    objective = ArmdObjective(permuted=0, mask_id=MASK_ID)
    batch = objective.likelihood(samples_of(texts), 0)
    with torch.no_grad():
        losses = model(batch.inputs, batch.positions, batch.targets).double() * batch.weights
    assert torch.exp(-losses.sum(1)).sum().item() == pytest.approx(1.0, abs=1e-5)
    assert losses.shape[1] == objective.scored(length)


@pytest.mark.parametrize("block, single_heads", [*KINDS, (6, True)])
@pytest.mark.parametrize("chunk", [1, 5, 128])
def test_prefix_aggregation_is_the_sum_over_what_is_seen(block, single_heads, chunk, monkeypatch):
    monkeypatch.setattr("card_scale.model.query_stream.CHUNK", chunk)
    generator = torch.Generator().manual_seed(2)
    contents = torch.randn(3, LENGTH, 8, generator=generator, dtype=torch.float64)
    _, positions = in_an_order()
    sees = torch.tensor(oracles.two_stream_sight(LENGTH, block, single_heads))[:LENGTH, LENGTH:]
    expected = reference_gpt.prefix_aggregation(contents, positions, sees, 4, 100.0)
    expected = reference_gpt.rms_norm(expected, torch.full((), 0.02).double())
    frequencies = 100.0 ** -torch.tensor([0.0, 0.5])
    angles = positions.t().float().unsqueeze(-1) * frequencies
    found = query_stream(contents.transpose(0, 1), angles, StrictBlockCausal(block, single_heads), 1e-5)
    torch.testing.assert_close(found.transpose(0, 1), expected, rtol=1e-4, atol=1e-6)


def test_batches_may_have_another_kind_of_attention(build):
    """As strided fine-tuning draws it in each update."""
    tokens, positions = in_an_order()
    strided = StrictBlockCausal(4, single_heads=True)
    model, other = build(StrictBlockCausal()), build(strided)
    plain = logits_of(model, tokens, positions[0])
    torch.testing.assert_close(
        model(tokens, positions, attention_kind=strided), other(tokens, positions), rtol=0, atol=0
    )
    assert torch.equal(logits_of(model, tokens, positions[0]), plain)
    # A kernel that has not this kind gives way to one that has.
    fused = build(StrictBlockCausal(), attention_backend="sdpa")
    torch.testing.assert_close(fused(tokens, positions, attention_kind=strided), other(tokens, positions))


@pytest.mark.parametrize("recompute", [False, True])
def test_recomputation_changes_nothing(build, recompute):
    model = build(StrictBlockCausal(2), layers=4)
    tokens, positions = in_an_order()
    model(tokens, positions, tokens).sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for layer in model.layers.values():
        layer.recompute = recompute
    model(tokens, positions, tokens).sum().backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-6, atol=1e-8)
