"""The stated formula of model FLOPs against torch's count of the products that the real model runs."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from card_scale.objectives import AttentionKind
from card_scale.training.throughput import (
    block_diffusion_flops_per_token,
    flops_per_token,
    parameter_counts,
)
from tests.model.conftest import VOCABULARY

LENGTH, SIZES = 12, {"layers": 2, "hidden": 24, "ffn": 40}


def counted(model, positions):
    """Return torch's count of (the forward, the backward pass) of one sample."""
    inputs = torch.full((1, len(positions)), 7)
    # Torch counts the attention only where it is made of plain products.
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            loss = model(inputs, positions, inputs[:, :LENGTH]).sum()
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("name", ["causal", "bidirectional"])
def test_causal_and_bidirectional_models(build, name):
    forward, backward = counted(build(AttentionKind(name), **SIZES), torch.arange(LENGTH))
    weights = parameter_counts(**SIZES, vocabulary=VOCABULARY.padded, tied=False).multiplied
    expected = flops_per_token(multiplied=weights, layers=2, hidden=24, length=LENGTH).full * LENGTH
    assert (forward + backward, backward) == (expected, 2 * forward)


def test_block_diffusion(build):
    """The queries of the last layer's clean half come with its keys and values: run, but not counted as progress."""
    model = build(AttentionKind("block_diffusion", 4), attention_backend="dense", **SIZES)
    forward, backward = counted(model, torch.arange(LENGTH).repeat(2))
    formula = block_diffusion_flops_per_token(**SIZES, vocabulary=VOCABULARY.padded, length=LENGTH, block=4)
    assert forward + backward == formula.full * LENGTH + 3 * 2 * LENGTH * 24**2
    assert backward == 2 * forward
