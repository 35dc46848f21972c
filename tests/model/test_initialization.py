"""Initial weights: the published deviations, and nothing but seed and name to decide them."""

import math

import pytest
import torch

from card_scale.model.initialization import initial_weight


@pytest.mark.parametrize("name", ["embedding.weight", "head.weight", "layers.7.attention.linear_qkv.weight"])
def test_matrices_have_deviation_0_02(name):
    weight = initial_weight(name, (400, 300), 1, 12)
    assert weight.dtype == torch.float32
    # The estimate of a deviation from n normal draws deviates by 1 / sqrt(2 n).
    assert weight.std().item() == pytest.approx(0.02, rel=5 / math.sqrt(2 * weight.numel()))
    assert abs(weight.mean().item()) < 5 * 0.02 / math.sqrt(weight.numel())


@pytest.mark.parametrize("layers", [1, 12, 48])
@pytest.mark.parametrize("name", ["layers.0.attention.linear_proj.weight", "layers.3.mlp.linear_fc2.weight"])
def test_what_writes_into_the_residual_stream_is_scaled_by_depth(name, layers):
    """GPT-2: the deviation is divided by the square root of the number of residual branches."""
    weight = initial_weight(name, (400, 300), 1, layers)
    expected = 0.02 / math.sqrt(2 * layers)
    assert weight.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * weight.numel()))


def test_norms_start_at_one():
    assert torch.equal(initial_weight("final_norm.weight", (7,), 1, 12), torch.ones(7))


def test_seed_and_name_alone_decide():
    base = initial_weight("embedding.weight", (20, 30), 1, 4)
    torch.manual_seed(99)
    assert torch.equal(initial_weight("embedding.weight", (20, 30), 1, 4), base)
    for other in (
        initial_weight("embedding.weight", (20, 30), 2, 4),
        initial_weight("head.weight", (20, 30), 1, 4),
        initial_weight("layers.1.mlp.linear_fc1.weight", (20, 30), 1, 4),
    ):
        correlation = torch.corrcoef(torch.stack((base.flatten(), other.flatten())))[0, 1]
        assert abs(correlation.item()) < 5 / math.sqrt(base.numel())
