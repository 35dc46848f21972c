"""The model that is trained: its architecture, causality, and what it can never predict."""

import re

import pytest
import torch
import torch.nn.functional as F

from card_scale.config import ModelConfig
from card_scale.distributed import process_groups
from card_scale.distributed.parallel_dims import ParallelDims
from card_scale.model.gpt import GPT
from card_scale.model.vocabulary import VOCABULARY_MULTIPLE, padded_vocabulary
from card_scale.model.weights import logical_weights
from card_scale.objectives.ar import ArObjective
from card_scale.objectives.attention import Causal
from card_scale.objectives.batch import weighted_loss
from card_scale.objectives.card import CardObjective
from card_scale.objectives.noise import Stream, uniforms
from tests.layouts.processes import run_ranks
from tests.model import reference_gpt
from tests.model.conftest import VOCABULARY
from tests.objectives import oracles
from tests.objectives.samples import samples_of

ALLOWED = torch.tensor([i for i in range(VOCABULARY.size) if i != VOCABULARY.mask_id])


def clean_tokens(rows, length, seed=0):
    places = torch.randint(0, len(ALLOWED), (rows, length), generator=torch.Generator().manual_seed(seed))
    return ALLOWED[places]


def model_logits(model, tokens):
    """Return [B, L, vocabulary]."""
    return model(tokens, torch.arange(tokens.shape[1]).expand(len(tokens), -1)).transpose(0, 1)


def named_weights(model):
    """Yield the parameters by their names in the whole model."""
    return ((logical.name, parameter) for parameter, logical in logical_weights([model]))


def float64_weights(model):
    return {name: p.detach().double().requires_grad_() for name, p in named_weights(model)}


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"tie_embeddings": True},
        {"layers": 3, "hidden": 32, "heads": 1, "ffn": 17},
        {"layers": 1, "hidden": 16, "heads": 8, "ffn": 64, "length": 5},
        {"hidden": 32, "heads": 4, "kv_heads": 1},
        {"hidden": 32, "heads": 4, "kv_heads": 2, "rotary_base": 100.0, "norm_epsilon": 1e-2},
    ],
)
def test_it_is_the_llama_decoder(build, sizes):
    model = build(**sizes)
    layers, heads = len(model.layers), model.config.num_attention_heads
    tokens = clean_tokens(3, 12)
    weights = float64_weights(model)
    others = {"kv_heads": sizes.get("kv_heads"), "rotary_base": sizes.get("rotary_base", 10_000.0)}
    expected = reference_gpt.logits(weights, tokens, layers, heads, **others, epsilon=sizes.get("norm_epsilon", 1e-5))
    found = model_logits(model, tokens)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)

    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    (expected * direction).sum().backward()
    (found * direction.float()).sum().backward()
    for name, parameter in named_weights(model):
        scale = weights[name].grad.abs().max().item()
        torch.testing.assert_close(parameter.grad.double(), weights[name].grad, rtol=0, atol=1e-5 * scale, msg=name)


def test_the_reference_notices_each_convention(build):
    """The comparison above is sharp: another order of q, k, v, of gate and factor, or of rotary pairs is far off."""
    model = build()
    tokens = clean_tokens(2, 12)
    found = model_logits(model, tokens).double()
    size = model.config.hidden_size // model.config.num_attention_heads

    def swapped(name, order):
        weights = float64_weights(model)
        for key in [key for key in weights if key.endswith(name)]:
            weights[key] = weights[key][order]
        return reference_gpt.logits(weights, tokens, 2, 3)

    rows = torch.arange(3 * 24)
    all_queries_first = rows.view(3, 3, size).transpose(0, 1).reshape(-1)
    interleaved_pairs = rows.view(9, 2, size // 2).transpose(1, 2).reshape(-1)
    gate_second = torch.arange(80).roll(40)
    for name, order in (
        ("linear_qkv.weight", all_queries_first),
        ("linear_qkv.weight", interleaved_pairs),
        ("linear_fc1.weight", gate_second),
    ):
        assert (swapped(name, order) - found).abs().max() > 1e-3


@pytest.mark.parametrize("tied", [False, True])
def test_a_prediction_depends_on_no_later_input(build, tied):
    """The output at input position j predicts token j + 1, so it may see inputs <= j."""
    model = build(tie_embeddings=tied)
    length = 12
    tokens = clean_tokens(2, length)
    before = model_logits(model, tokens)
    for first in range(1, length):
        changed = tokens.clone()
        changed[:, first:] = clean_tokens(2, length, seed=first)[:, first:]
        changed[:, first] = VOCABULARY.mask_id
        after = model_logits(model, changed)
        assert torch.equal(before[:, :first], after[:, :first])
        assert (before[:, first:] != after[:, first:]).any(-1).all()


def test_no_gradient_reaches_a_later_input(build):
    model = build()
    inputs = []
    model.embedding.register_forward_hook(lambda _m, _i, output: inputs.append(output.retain_grad() or output))
    logits = model_logits(model, clean_tokens(1, 12))
    for position in range(12):
        logits[0, position].square().sum().backward(retain_graph=True)
        by_input = inputs[0].grad.abs().sum(-1)[0]
        assert (by_input[position + 1 :] == 0).all()
        assert (by_input[: position + 1] > 0).all()
        inputs[0].grad = None


def test_the_mask_and_the_padding_never_win(build):
    model = build()
    tokens = clean_tokens(2, 13)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    forbidden = torch.ones(VOCABULARY.padded, dtype=torch.bool)
    forbidden[ALLOWED] = False
    with torch.no_grad():
        before = model(inputs, torch.arange(12)[None], targets)
        model.head.projection.weight[forbidden] = 100.0 * model.head.projection.weight[ALLOWED[:1]]
        after = model(inputs, torch.arange(12)[None], targets)
    assert torch.equal(before, after)
    allowed = model_logits(model, inputs)[..., ALLOWED].double()
    places = torch.searchsorted(ALLOWED, targets)
    expected = F.cross_entropy(allowed.transpose(1, 2), places, reduction="none")
    torch.testing.assert_close(after.double(), expected, rtol=1e-6, atol=1e-6)

    model(inputs, torch.arange(12)[None], targets).mean().backward()
    assert (model.head.projection.weight.grad[forbidden] == 0).all()
    assert (model.head.projection.weight.grad[ALLOWED] != 0).any(-1).all()


def test_the_mask_is_learnt_as_an_input(build):
    model = build()
    inputs = clean_tokens(1, 12)
    inputs[:, 6] = VOCABULARY.mask_id
    model(inputs, torch.arange(12)[None], clean_tokens(1, 12, seed=1)).mean().backward()
    gradient = model.embedding.weight.grad
    assert gradient[VOCABULARY.mask_id].abs().sum() > 0
    assert (gradient[VOCABULARY.size :] == 0).all()


@pytest.mark.parametrize(
    "settings", [{}, {"masking": "uniform", "decay": 0.2}, {"reweight": False, "tail_factor": 3.0}]
)
def test_card_loss_of_the_model_against_a_float64_loop(build, settings):
    model = build()
    objective = CardObjective(mask_id=VOCABULARY.mask_id, **settings)
    rows, length, seed = 4, 12, 77
    tokens = clean_tokens(rows, length + 1, seed=3)
    ids, epochs = torch.arange(rows) + 900, torch.tensor([0, 1, 2, 3])
    batch = objective.corrupt(samples_of(tokens, ids, epochs), seed)
    with torch.no_grad():
        token_losses = model(batch.inputs, batch.positions, batch.targets)
    loss = weighted_loss(token_losses, batch.weights, objective.normaliser(batch)).item()

    weights = {name: value.detach() for name, value in float64_weights(model).items()}
    levels = uniforms(seed, ids, epochs, 1, Stream.NOISE_LEVEL)[:, 0].tolist()
    draws = uniforms(seed, ids, epochs, length - 1, Stream.MASK).tolist()
    total = weight_sum = 0.0
    for row in range(rows):
        if objective.masking == "uniform":
            masked = [False] + oracles.uniform_mask(levels[row], draws[row])
        else:
            masked = [False] + oracles.soft_tail_mask(levels[row], draws[row], objective.tail_factor)
        clean = tokens[row].tolist()
        read = [VOCABULARY.mask_id if mask else token for mask, token in zip(masked, clean, strict=False)]
        logits = reference_gpt.logits(weights, torch.tensor([read]), 2, 3)[0].tolist()
        context = oracles.context_weights(masked, objective.decay, objective.beta)
        for position in range(length):
            target = clean[position + 1]
            seen = [logits[position][token] for token in ALLOWED.tolist()]
            weight = context[position] if objective.reweight else 1.0
            total += weight * oracles.cross_entropy(seen, ALLOWED.tolist().index(target))
            weight_sum += weight
    assert loss == pytest.approx(total / weight_sum, rel=1e-6)


def test_without_masks_card_trains_the_model_exactly_as_ar(build):
    model, tokens = build(), clean_tokens(3, 13)
    samples = samples_of(tokens)
    card, ar = CardObjective(mask_id=VOCABULARY.mask_id), ArObjective()
    losses, gradients = [], []
    for batch, objective in ((card.likelihood(samples, 0), card), (ar.corrupt(samples, 0), ar)):
        model.zero_grad()
        token_losses = model(batch.inputs, batch.positions, batch.targets)
        loss = weighted_loss(token_losses, batch.weights, objective.normaliser(batch))
        loss.backward()
        losses.append(loss.detach())
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert torch.equal(*losses)
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_dropout_is_applied_to_the_embedding_and_both_branches(build):
    model = build(dropout=0.5)
    tokens, positions = clean_tokens(2, 12), torch.arange(12).expand(2, -1)
    keys = torch.tensor([[1, 2], [3, 4]])
    plain = model(tokens, positions)
    dropped = model(tokens, positions, None, keys)
    assert torch.equal(plain, model(tokens, positions))
    assert torch.equal(dropped, model(tokens, positions, None, keys))
    assert not torch.equal(dropped, plain)
    assert not torch.equal(dropped, model(tokens, positions, None, keys + 1))
    # A sample's dropout does not depend on its neighbours.
    alone = model(tokens[1:], positions[1:], None, keys[1:])
    torch.testing.assert_close(alone[:, 0], dropped[:, 1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("vocabulary", [1, 127, 128, 129, 8192, 32000])
def test_the_vocabulary_is_padded(vocabulary):
    padded = padded_vocabulary(vocabulary)
    assert padded % VOCABULARY_MULTIPLE == 0
    assert vocabulary <= padded < vocabulary + VOCABULARY_MULTIPLE


def build_with_three_tensor_ranks():
    dims = ParallelDims(3, 1, 1)
    process_groups.initialize(dims, 60)
    GPT(ModelConfig(layers=1, hidden=24, heads=3, ffn=48, length=12), VOCABULARY, Causal(), dims)


def test_a_tensor_size_that_does_not_divide_the_vocabulary_is_refused():
    message = r"ConfigurationError: the padded vocabulary 256 is not divisible by parallel\.tensor 3"
    for error in run_ranks(build_with_three_tensor_ranks, 3, expect_failure=True):
        assert re.search(message, error)


def test_each_sample_may_have_positions_of_its_own(build):
    model = build()
    tokens = clean_tokens(3, 12)
    generator = torch.Generator().manual_seed(2)
    positions = torch.stack([torch.randperm(12, generator=generator) for _ in range(3)])
    expected = reference_gpt.logits(float64_weights(model), tokens, 2, 3, positions=positions)
    found = model(tokens, positions).transpose(0, 1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    shared = positions[:1].repeat(3, 1)
    assert torch.equal(model(tokens, shared), model(tokens, positions[:1].expand(3, -1)))
