"""The moving average, against a plain loop over the weights after each step."""

import dataclasses

import pytest
import torch

from card_scale.config import OptimizerConfig
from card_scale.engine import optimizer
from card_scale.engine.optimizer import AdamW

CONFIG = OptimizerConfig(lr=0.1, ema=0.75)


def step(adamw: AdamW, weights: list[torch.nn.Parameter], number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator)
    adamw.step()


def test_the_average_follows_the_weights_after_each_step():
    weights = [torch.nn.Parameter(torch.full((3, 2), 0.5)), torch.nn.Parameter(torch.ones(4))]
    adamw = AdamW([{"params": weights}], CONFIG)
    averages = [weight.detach().double().clone() for weight in weights]  # it begins at the initial weights
    for number in range(5):
        step(adamw, weights, number)
        averages = [0.75 * average + 0.25 * weight.detach() for average, weight in zip(averages, weights, strict=True)]
        for weight, average in zip(weights, averages, strict=True):
            torch.testing.assert_close(adamw.state[weight]["ema"].double(), average, rtol=1e-6, atol=1e-7)


def test_one_kernel_on_a_gpu_but_where_copies_would_drift_apart(monkeypatch):
    weights = [torch.nn.Parameter(torch.ones(4))]
    for gpu, may_be, expected in ((True, True, True), (True, False, None), (False, True, None)):
        monkeypatch.setattr(optimizer, "fused", lambda gpu=gpu: gpu)
        assert AdamW([{"params": weights}], CONFIG, may_be_fused=may_be).defaults["fused"] is expected


@pytest.mark.parametrize("decay", [0.0, 0.75])
def test_it_is_adamw_whether_it_averages_or_not(decay):
    ours, theirs = (torch.nn.Parameter(torch.full((3, 2), 0.5)) for _ in range(2))
    adamw = AdamW([{"params": [ours]}], dataclasses.replace(CONFIG, ema=decay))
    reference = torch.optim.AdamW([theirs], lr=CONFIG.lr, betas=CONFIG.betas, eps=CONFIG.eps)
    for number in range(3):
        step(adamw, [ours], number)
        step(reference, [theirs], number)
    assert torch.equal(ours, theirs)
    assert ("ema" in adamw.state[ours]) == bool(decay)
