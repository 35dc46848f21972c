"""Clipping, against what it must do to given gradients."""

import pytest
import torch

from card_scale.engine.gradients import clip


def gradients() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator) for shape in ((4, 3), (7,))]


def norm_of(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors]).norm()


@pytest.mark.parametrize("largest", [0.1, 1.0])
def test_above_the_limit_the_norm_becomes_the_limit(largest):
    held, before = gradients(), gradients()
    clip(held, norm_of(held), largest)
    assert norm_of(held).item() == pytest.approx(largest, rel=1e-5)
    for one, other in zip(held, before, strict=True):
        torch.testing.assert_close(one, other * (largest / norm_of(before)))


@pytest.mark.parametrize("largest", [0.0, 50.0, 1e6])
def test_below_the_limit_and_without_one_nothing_changes(largest):
    held = gradients()
    clip(held, norm_of(held), largest)
    for one, other in zip(held, gradients(), strict=True):
        assert torch.equal(one, other)
