"""RMSNorm against torch's module and float64."""

import pytest
import torch

from card_scale.model.norm import RMSNorm
from tests.model import reference_gpt


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("epsilon", [1e-5, 1e-2])
def test_it_is_torchs_norm(dtype, epsilon):
    states = torch.randn(5, 2, 48).to(dtype)
    ours = RMSNorm(48, sequence_parallel=False, epsilon=epsilon).to(dtype)
    theirs = torch.nn.RMSNorm(48, eps=epsilon, dtype=dtype)
    with torch.no_grad():
        ours.weight.copy_(torch.randn(48))
        theirs.weight.copy_(ours.weight)
    assert torch.equal(ours(states), theirs(states))


def test_values_and_gradients_in_float64():
    norm = RMSNorm(16, sequence_parallel=False, epsilon=1e-5)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(16))
    states = (0.01 * torch.randn(4, 3, 16)).requires_grad_()  # small: epsilon shows
    direction = torch.randn(4, 3, 16)
    exact_states, exact_weight = (
        states.detach().double().requires_grad_(),
        norm.weight.detach().double().requires_grad_(),
    )
    expected = reference_gpt.rms_norm(exact_states, exact_weight)
    result = norm(states)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-6)
    (result * direction).sum().backward()
    (expected * direction).sum().backward()
    torch.testing.assert_close(states.grad.double(), exact_states.grad, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(norm.weight.grad.double(), exact_weight.grad, rtol=1e-4, atol=1e-5)
