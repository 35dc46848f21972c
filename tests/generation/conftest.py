"""Small models without training: weights large enough that logits say something."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from card_scale import config as configs
from card_scale.checkpoint.run_files import RunFiles
from card_scale.checkpoint.whole import write_whole
from card_scale.data.tokenizer import Tokenizer
from card_scale.generation.model import InferenceModel
from card_scale.generation.shape import DecoderShape
from card_scale.generation.two_streams import TwoStreamModel
from card_scale.model.initialization import initial_weight

MASK_ID = 4

SHAPE = DecoderShape(
    rows=64,
    vocabulary=29,
    mask_id=MASK_ID,
    start_id=3,
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
    shape = dataclasses.replace(SHAPE, **sizes)
    model = (TwoStreamModel if shape.two_streams else InferenceModel)(shape).to(dtype)
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


def write_checkpoint(
    directory: Path, tokenizer_path: Path, weights: Mapping[str, torch.Tensor], *overrides: str
) -> Path:
    """Write a checkpoint of whole-model weights, as a run with these overrides would have; return its directory."""
    config = configs.load("launchers/configs/quickstart.yaml", ["data.path=nowhere", *overrides])
    sha256 = Tokenizer.load(tokenizer_path).sha256
    write_whole(directory, weights, RunFiles({"step": 0}, config.to_yaml(), tokenizer_path), sha256, "a test")
    return directory


TINY = ("model.layers=2", "model.hidden=24", "model.heads=3", "model.ffn=40", "model.length=48")
"""Of a model like SHAPE, with the vocabulary of the tests' tokenizer."""


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, tokenizer_path) -> Path:
    """Of a small untrained CARD model."""
    model = make_model(3.0, dtype=torch.float32, rows=448, vocabulary=400, rotary_base=1e4, tied=True)
    directory = tmp_path_factory.mktemp("checkpoints") / "iter_0000000"
    weights = {name: weight.float() for name, weight in whole_model_weights(model).items()}
    return write_checkpoint(directory, tokenizer_path, weights, *TINY)
