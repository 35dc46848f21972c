"""MDLM and BD3-LM on the real model: what sees what, exactly, and the limits where one becomes the other."""

import itertools
import math

import pytest
import torch

from card_scale.model.vocabulary import Vocabulary
from card_scale.objectives.attention import Bidirectional, BlockDiffusion
from card_scale.objectives.batch import weighted_loss
from card_scale.objectives.block_diffusion import BlockDiffusionObjective
from card_scale.objectives.mdlm import MdlmObjective
from tests.model import reference_gpt
from tests.model.conftest import VOCABULARY
from tests.model.test_gpt import float64_weights, named_weights
from tests.objectives import oracles
from tests.objectives.samples import samples_of

LENGTH = 12
BLOCKS = [1, 2, 3, 4, 6, 12]
MASK_ID = VOCABULARY.mask_id


def block_diffusion(block):
    return BlockDiffusion(block)


def clean_tokens(rows, length, seed=0, size=VOCABULARY.size):
    tokens = torch.randint(0, size - 1, (rows, length), generator=torch.Generator().manual_seed(seed))
    return tokens + (tokens >= MASK_ID)


def logits_of(model, inputs, positions):
    """Return [B, L, vocabulary]."""
    return model(inputs, positions[None]).transpose(0, 1)


def dependencies(model, inputs, positions, places):
    """Return bool [L, places]: whether an output changes, in any bit, with the input at a place."""
    changed = []
    with torch.no_grad():
        base = logits_of(model, inputs, positions)
        for place in places:
            other = inputs.clone()
            # Between clean tokens, and to and from [MASK].
            other[:, place] = torch.where(inputs[:, place] == MASK_ID, 7, MASK_ID)
            other[0, place] = (inputs[0, place] + 11) % 100 + 100
            changed.append((logits_of(model, other, positions) != base).any(-1).all(0))
    return torch.stack(changed, 1)


def noisy_beside_clean(seed=0):
    clean = clean_tokens(3, LENGTH, seed)
    masked = torch.rand(clean.shape, generator=torch.Generator().manual_seed(seed + 1)) < 0.5
    masked[0] = True
    return torch.cat((clean.masked_fill(masked, MASK_ID), clean), dim=1), torch.arange(LENGTH).repeat(2)


@pytest.mark.parametrize("backend", ["split", "dense"])
@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_depends_on_itself_and_the_clean_blocks_before_it_only(build, block, backend):
    """Exactly: no bit of another noisy block, of its own clean tokens or of later ones, through any layer."""
    model = build(block_diffusion(block), layers=3, attention_backend=backend)
    inputs, positions = noisy_beside_clean()
    expected = [[oracles.sees(query, key, LENGTH, block) for key in range(2 * LENGTH)] for query in range(LENGTH)]
    assert dependencies(model, inputs, positions, range(2 * LENGTH)).tolist() == expected


@pytest.mark.parametrize("block", BLOCKS)
def test_no_gradient_reaches_an_input_that_is_hidden(build, block):
    model = build(block_diffusion(block))
    embedded = []
    model.embedding.register_forward_hook(lambda _m, _i, output: embedded.append(output.retain_grad() or output))
    inputs, positions = noisy_beside_clean()
    losses = model(inputs[:1], positions[None], inputs[:1, LENGTH:])
    for number in range(LENGTH // block):
        losses[0, number * block : (number + 1) * block].sum().backward(retain_graph=True)
        reached = embedded[0].grad.abs().sum(-1)[0] > 0
        assert reached.tolist() == [oracles.sees(number * block, key, LENGTH, block) for key in range(2 * LENGTH)]
        embedded[0].grad = None


def test_mdlm_depends_on_every_input(build):
    model = build(Bidirectional())
    inputs, positions = noisy_beside_clean()
    assert dependencies(model, inputs[:, :LENGTH], positions[:LENGTH], range(LENGTH)).all()


@pytest.mark.parametrize("purpose", ["corrupt", "likelihood"])
def test_one_block_is_mdlm(build, purpose):
    mdlm, block = MdlmObjective(mask_id=MASK_ID), BlockDiffusionObjective(block=LENGTH, mask_id=MASK_ID)
    samples = samples_of(clean_tokens(4, LENGTH + 1))
    results = []
    for objective in (mdlm, block):
        model = build(objective.attention)
        batch = getattr(objective, purpose)(samples, 3)
        token_losses = model(batch.inputs, batch.positions, batch.targets)
        weighted_loss(token_losses, batch.weights, objective.normaliser(batch)).backward()
        results.append((token_losses.detach(), *(parameter.grad for parameter in model.parameters())))
    for one, other in zip(*results, strict=True):
        scale = one.abs().max().item()
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6 * scale)


def assert_losses_and_gradients(model, found, weights, logits, targets):
    """The model's losses ``found`` and their gradients are those of the reference's ``logits`` by its ``weights``."""
    allowed = logits[..., : VOCABULARY.size].clone()
    allowed[..., MASK_ID] = -math.inf
    expected = torch.nn.functional.cross_entropy(allowed.transpose(1, 2), targets, reduction="none")
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    direction = torch.rand(found.shape, generator=torch.Generator().manual_seed(1))
    (expected * direction).sum().backward()
    (found * direction).sum().backward()
    for name, parameter in named_weights(model):
        scale = weights[name].grad.abs().max().item()
        torch.testing.assert_close(parameter.grad.double(), weights[name].grad, rtol=0, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize("block", BLOCKS)
def test_losses_and_gradients_of_the_float64_decoder_over_all_positions(build, block):
    """The reference takes all 2L positions through all layers, by the dense mask of the definition."""
    model = build(block_diffusion(block), layers=3)
    inputs, positions = noisy_beside_clean()
    targets = inputs[:, LENGTH:]
    sees = torch.tensor(
        [[oracles.sees(query, key, LENGTH, block) for key in range(2 * LENGTH)] for query in range(2 * LENGTH)]
    )
    weights = float64_weights(model)
    logits = reference_gpt.logits(weights, inputs, 3, 3, sees, positions)[:, :LENGTH]
    assert_losses_and_gradients(model, model(inputs, positions[None], targets), weights, logits, targets)


@pytest.mark.parametrize("block", [1, 4, 12])
@pytest.mark.parametrize("recompute", [False, True])
def test_the_last_layer_may_skip_the_clean_half(build, block, recompute):
    inputs, positions = noisy_beside_clean()
    results = []
    for shortcut in (True, False):
        model = build(block_diffusion(block))
        assert model.attention.wide_layers == 2
        if not shortcut:
            model.attention.wide_layers = 3
        model.layers["1"].recompute = recompute
        logits = logits_of(model, inputs, positions)
        assert logits.shape[1] == (LENGTH if shortcut else 2 * LENGTH)
        logits[:, :LENGTH].logsumexp(-1).square().sum().backward()
        results.append((logits[:, :LENGTH].detach(), *(parameter.grad for parameter in model.parameters())))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6 * one.abs().max().item())


@pytest.mark.parametrize("block", [1, 3, 4])
def test_what_follows_a_block_may_be_cut_off(build, block):
    """The loss of a block is that of denoising it after a clean prefix, whatever the length of the sample."""
    model = build(block_diffusion(block))
    inputs, positions = noisy_beside_clean()
    noisy, clean = inputs.split(LENGTH, dim=1)
    whole = model(inputs, positions[None], clean)
    for end in range(block, LENGTH, block):
        both = torch.cat((noisy[:, :end], clean[:, :end]), dim=1)
        cut = model(both, torch.arange(end).repeat(1, 2), clean[:, :end])
        torch.testing.assert_close(cut, whole[:, :end], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("purpose", ["corrupt", "likelihood"])
def test_blocks_of_one_token_are_a_left_to_right_model_without_a_bound(build, purpose):
    """exp(-loss), summed over all texts that begin with one token, is 1: a distribution, nothing lost to a bound."""
    vocabulary, length = Vocabulary(size=7, mask_id=MASK_ID), 5
    model = build(block_diffusion(1), vocabulary, length=length)
    letters = [token for token in range(vocabulary.size) if token != MASK_ID]
    texts = torch.tensor([(2, *rest, 0) for rest in itertools.product(letters, repeat=length - 1)])
    objective = BlockDiffusionObjective(block=1, mask_id=MASK_ID)
    batch = getattr(objective, purpose)(samples_of(texts), 0)
    with torch.no_grad():
        losses = model(batch.inputs, batch.positions, batch.targets).double() * batch.weights
    assert len(losses) == 6**4
    assert torch.exp(-losses.sum(1)).sum().item() == pytest.approx(1.0, abs=1e-5)
    # Each conditional by itself: the same for all texts that share what is before it, and a distribution.
    for position in range(1, length):
        conditional = losses[:, position].view(*[6] * position, -1)
        torch.testing.assert_close(conditional, conditional[..., :1].expand_as(conditional), rtol=1e-5, atol=1e-5)
        totals = torch.exp(-conditional[..., 0]).sum(-1)
        torch.testing.assert_close(totals, torch.ones_like(totals), rtol=1e-5, atol=0)
    assert (losses[:, 0] == 0).all()


@pytest.mark.parametrize("attention", [Bidirectional(), block_diffusion(4)])
def test_the_mask_is_never_predicted(build, attention):
    """SUBS: however large its logit, [MASK] takes no probability, at masked positions neither."""
    model = build(attention)
    inputs, positions = noisy_beside_clean()
    targets = inputs[:, LENGTH:]
    if attention.name == "bidirectional":
        inputs, positions = inputs[:, :LENGTH], positions[:LENGTH]
    with torch.no_grad():
        before = model(inputs, positions[None], targets)
        model.head.projection.weight[MASK_ID] = 100.0 * model.head.projection.weight[5]
        after = model(inputs, positions[None], targets)
        logits = logits_of(model, inputs, positions)
    assert (logits.argmax(-1) == MASK_ID).any()
    assert torch.equal(before, after)
    model(inputs, positions[None], targets).sum().backward()
    assert (model.head.projection.weight.grad[MASK_ID] == 0).all()
