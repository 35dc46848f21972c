"""The stated formula of model FLOPs against torch's count of the products that the real model runs."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from card_scale.config import ModelConfig
from card_scale.cost.flops import flops_per_token, training_work
from card_scale.objectives.attention import Bidirectional, BlockDiffusion, Causal, StrictBlockCausal
from tests.model.conftest import VOCABULARY, build, one_rank

__all__ = ["build", "one_rank"]

LENGTH, SIZES = 12, {"layers": 2, "hidden": 24, "ffn": 40}


def counted(model, positions):
    """Return torch's count of (the forward, the backward pass) of one sample."""
    inputs = torch.full((1, LENGTH if model.attention.kind.has_query_stream else len(positions)), 7)
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


@pytest.mark.parametrize("layers, kv_heads", [(2, None), (5, None), (4, 1)])
def test_two_streams(build, layers, kv_heads):
    """Run, but no progress: the queries' keys and values, the contents' queries in the last layer of both, and the
    aggregation, which has no weights."""
    sizes = {**SIZES, "layers": layers, "kv_heads": kv_heads}
    model = build(StrictBlockCausal(), attention_backend="dense", **sizes)
    forward, backward = counted(model, torch.arange(LENGTH).repeat(2))
    hidden, head_size = 24, 8
    keys_and_values = 3 * 2 * LENGTH * (layers // 2) * 2 * hidden * head_size * (kv_heads or 3)
    last_queries = 3 * 2 * LENGTH * hidden**2
    state = 2 * LENGTH * head_size * hidden
    pairs = 2 * LENGTH**2 * head_size
    mixed = 2 * LENGTH**2 * hidden
    aggregation = (state + pairs + mixed + state) + (state + mixed + state)
    config = ModelConfig(**sizes, heads=3, length=LENGTH)
    expected = flops_per_token(config, StrictBlockCausal(), VOCABULARY.padded).full * LENGTH
    assert forward + backward == expected + keys_and_values + last_queries + aggregation


def test_armd_costs_a_third_more_than_ar_in_twelve_layers():
    """By hand: of 12 layers of 12 h^2, six have two streams without the queries' 2 h^2, the last of them without 10 h^2
    of the contents: 6 * 22 - 10 + 6 * 12 = 194, of 144."""
    model = ModelConfig(layers=12, hidden=48, heads=4, ffn=128, length=64)
    ar, armd = (training_work(model, kind, 0) for kind in (Causal(), StrictBlockCausal()))
    assert armd.layers / ar.layers == pytest.approx(194 / 144)
    # Pairs: L in five layers, half of it in the sixth and in each of six: 5 + 0.5 * 7, of 6.
    assert armd.attention / ar.attention == pytest.approx((5 + 3.5) / 6)
