"""Small models without training: weights large enough that logits say something."""

import dataclasses

import pytest
import torch

from card_scale.generation.model import InferenceModel
from card_scale.generation.shape import DecoderShape
from card_scale.model.initialization import initial_weight

MASK_ID = 4

SHAPE = DecoderShape(
    rows=64,
    vocabulary=29,
    mask_id=MASK_ID,
    layers=2,
    hidden=24,
    heads=3,
    kv_heads=3,
    ffn=40,
    length=48,
    rotary_base=100.0,
    norm_epsilon=1e-5,
    tied=False,
)


def make_model(scale: float = 5.0, seed: int = 1, dtype: torch.dtype = torch.float64, **sizes) -> InferenceModel:
    """A model with initial weights times ``scale``: 5 attends somewhere, 50 repeats itself like a trained one."""
    model = InferenceModel(dataclasses.replace(SHAPE, **sizes)).to(dtype)
    model.rotary.fill()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_weight(name, tuple(parameter.shape), seed, model.shape.layers))
            if parameter.dim() > 1:
                parameter *= scale
    return model


def whole_model_weights(model: InferenceModel) -> dict[str, torch.Tensor]:
    """Its weights by the names of a checkpoint."""
    weights = dict(model.named_parameters())
    for name in [name for name in weights if name.endswith(".mlp.gate.weight")]:
        prefix = name.removesuffix("gate.weight")
        halves = weights.pop(name), weights.pop(f"{prefix}up.weight")
        weights[f"{prefix}linear_fc1.weight"] = torch.cat(halves)
    return {name: weight.detach().double() for name, weight in weights.items()}


def prompt(length: int, seed: int = 0) -> list[int]:
    """Random tokens without [MASK]."""
    tokens = torch.randint(0, SHAPE.vocabulary - 1, (length,), generator=torch.Generator().manual_seed(seed))
    return (tokens + (tokens >= MASK_ID)).tolist()


@pytest.fixture(autouse=True)
def one_thread():
    """Small products are no faster on several threads, which wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
