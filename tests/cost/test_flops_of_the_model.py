"""The stated formula of model FLOPs against torch's count of the products that the real model runs."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from card_scale.config import ModelConfig
from card_scale.cost.flops import flops_per_token
from card_scale.objectives.attention import Bidirectional, BlockDiffusion, Causal
from tests.model.conftest import VOCABULARY, build, one_rank

__all__ = ["build", "one_rank"]

LENGTH, SIZES = 12, {"layers": 2, "hidden": 24, "ffn": 40}


def counted(model, positions):
    """Return torch's count of (the forward, the backward pass) of one sample."""
    inputs = torch.full((1, len(positions)), 7)
    # Torch counts the attention only where it is made of plain products.
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            loss = model(inputs, positions[None], inputs[:, :LENGTH]).sum()
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


def formula(kind, **sizes):
    model = ModelConfig(**SIZES, heads=3, length=LENGTH, **sizes)
    return flops_per_token(model, kind, VOCABULARY.padded).full * LENGTH


@pytest.mark.parametrize("kind", [Causal(), Bidirectional()])
@pytest.mark.parametrize("kv_heads", [None, 1])
def test_causal_and_bidirectional_models(build, kind, kv_heads):
    forward, backward = counted(build(kind, **SIZES, kv_heads=kv_heads), torch.arange(LENGTH))
    assert (forward + backward, backward) == (formula(kind, kv_heads=kv_heads), 2 * forward)


def test_block_diffusion(build):
    """The queries of the last layer's clean half come with its keys and values: run, but not counted as progress."""
    kind = BlockDiffusion(4)
    model = build(kind, attention_backend="dense", **SIZES)
    forward, backward = counted(model, torch.arange(LENGTH).repeat(2))
    assert forward + backward == formula(kind) + 3 * 2 * LENGTH * 24**2
    assert backward == 2 * forward
