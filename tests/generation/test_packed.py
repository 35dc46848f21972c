"""Weights that are laid out for passes of few inputs give the same model."""

import copy
import pickle

import pytest
import torch
from torch import nn

from card_scale.generation import packed
from card_scale.generation.loop import generate
from tests.generation.conftest import make_model, prompt


@pytest.fixture
def every_size(monkeypatch):
    monkeypatch.setattr(packed, "SMALLEST", 1)


@pytest.mark.usefixtures("every_size")
@pytest.mark.parametrize("rows", [1, 2, 7, 33])
@pytest.mark.parametrize("outputs, inputs", [(48, 32), (31, 17), (1, 5)])
def test_it_is_the_product(rows, outputs, inputs):
    generator = torch.Generator().manual_seed(rows)
    weight, hidden = (torch.randn(count, inputs, generator=generator) for count in (outputs, rows))
    exact = (hidden.double() @ weight.double().t()).float()
    with torch.inference_mode():
        for shape in ((rows,), (1, rows), (rows, 1)):
            found = packed.product(hidden.view(*shape, inputs), weight, packed.laid_out(weight))
            torch.testing.assert_close(found, exact.view(*shape, outputs), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("every_size")
@pytest.mark.parametrize("tied", [False, True])
def test_a_packed_model_has_the_same_logits_and_parameters(tied):
    model = make_model(dtype=torch.float32, tied=tied)
    tokens, names = torch.tensor([prompt(20)]), [name for name, _ in model.named_parameters()]
    expected = model.logits(tokens)
    model.pack()
    assert model.layers[0].mlp.gate.copy is not None
    assert (model.embedding_copy is not None) == tied
    assert [name for name, _ in model.named_parameters()] == names
    torch.testing.assert_close(model.logits(tokens), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("every_size")
def test_a_packed_model_is_decoded_without_loss():
    model = make_model(scale=50.0, dtype=torch.float32)
    model.pack()
    prompts = [prompt(9, seed) for seed in range(4)]
    plain, verified = (generate(model, prompts, method=method, new_tokens=30) for method in ("ar", "self_verified"))
    assert [one.tokens for one in plain] == [one.tokens for one in verified]


@pytest.mark.usefixtures("every_size")
def test_unpacked_it_follows_its_weights_again():
    model = make_model(dtype=torch.float32)
    model.pack()
    tokens = torch.tensor([prompt(20)])
    model.unpack()
    with torch.no_grad():
        model.layers[0].mlp.gate.weight.zero_()
        for parameter in model.layers[1].parameters():
            parameter.zero_()
    changed = model.logits(tokens)
    model.pack()
    torch.testing.assert_close(model.logits(tokens), changed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("why", ["dtype", "room", "size"])
def test_what_cannot_be_packed_or_would_not_gain_stays(monkeypatch, why):
    if why != "size":
        monkeypatch.setattr(packed, "SMALLEST", 1)
    if why == "room":
        monkeypatch.setattr(packed, "LARGEST_SHARE", 0.0)
    model = make_model(dtype=torch.float64 if why == "dtype" else torch.float32)
    model.pack()
    assert model.layers[0].mlp.gate.copy is None


@pytest.mark.usefixtures("every_size")
@pytest.mark.parametrize("tied", [False, True])
def test_a_copy_of_changed_weights_is_not_used(tied):
    model, other = (make_model(seed=seed, dtype=torch.float32, tied=tied) for seed in (1, 2))
    tokens = torch.tensor([prompt(20)])
    model.pack()
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(model.logits(tokens), other.logits(tokens), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        for one in (model, other):
            one.embedding.weight.mul_(0.5)
            one.layers[0].mlp.up.weight.zero_()
    torch.testing.assert_close(model.logits(tokens), other.logits(tokens), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.double().logits(tokens), other.double().logits(tokens))


@pytest.mark.usefixtures("every_size")
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_packed_model_can_be_copied(copied):
    model, tokens = make_model(dtype=torch.float32), torch.tensor([prompt(20)])
    expected = model.logits(tokens)
    model.pack()
    torch.testing.assert_close(copied(model).logits(tokens), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("every_size")
def test_gradients_go_through_the_weights():
    linear = packed.Linear(8, 4)
    linear.copy = packed.laid_out(linear.weight)
    linear(torch.ones(2, 8)).sum().backward()
    assert torch.equal(linear.weight.grad, torch.full((4, 8), 2.0))


def test_a_weight_that_is_split_is_left_alone():
    class Split(torch.Tensor):
        pass

    whole, split = torch.ones(4, 4), torch.ones(4, 4).as_subclass(Split)
    assert packed.is_possible([nn.Parameter(whole)])
    assert not packed.is_possible([whole, split])
