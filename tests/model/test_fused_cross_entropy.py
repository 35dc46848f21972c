"""The Triton kernels, interpreted on a CPU, against float64 and the reference: values, gradients, memory."""

import weakref

import pytest
import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint

from card_scale.errors import ConfigurationError
from card_scale.model.cross_entropy import reference, selection
from tests.layouts.processes import run_ranks
from tests.model.test_cross_entropy import COLUMNS, FORBIDDEN, forbidden_columns, oracle, problem

pytest.importorskip("triton", reason="make test installs it")
from card_scale.model.cross_entropy import fused

BLOCKS = (8, 32)
"""Columns at a time: several to a row with a part that is empty, and all at once."""


def score(kernel, logits, targets, weights, start=0, forbidden=None):
    """Return (losses, gradient of the weighted sum, whether the gradient lies where the logits were)."""
    leaf = logits.detach().clone().requires_grad_()
    owned = leaf * 1.0  # the head's logits are nobody's leaf
    places = []
    owned.register_hook(lambda gradient: places.append(gradient.data_ptr()))
    forbidden = forbidden_columns() if forbidden is None else forbidden
    losses = kernel(owned, targets, start, forbidden, dist.group.WORLD)
    (losses * weights).sum().backward()
    return losses.detach(), leaf.grad, places == [owned.data_ptr()]


def on_this_rank(problems, block, columns):
    """Return what the fused kernel and the reference make of this rank's share of each problem's columns."""
    fused.BLOCK = block
    start = dist.get_rank() * columns
    shard = slice(start, start + columns)
    found = []
    for logits, targets, weights, forbidden in problems:
        arguments = (logits[..., shard].contiguous(), targets, weights, start, forbidden[shard])
        found.append([score(module.vocabulary_parallel_cross_entropy, *arguments) for module in (fused, reference)])
    return found


def problems():
    return [
        (*problem(shape, dtype, seed, scale), forbidden_columns())
        for seed, (shape, dtype, scale) in enumerate(
            [
                ((1,), torch.float32, 3.0),
                ((5, 3), torch.float32, 0.0),
                ((2, 3, 4), torch.float32, 60.0),
                ((6, 4), torch.bfloat16, 3.0),
                ((7,), torch.bfloat16, 60.0),
            ]
        )
    ]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("ranks", [1, 2])
def test_values_and_gradients(ranks, block):
    given = problems()
    found = run_ranks(on_this_rank, ranks, given, block, COLUMNS // ranks)
    for number, (logits, targets, weights, _) in enumerate(given):
        expected, expected_gradient = oracle(logits, targets, weights)
        ours = [of_rank[number][0] for of_rank in found]
        theirs = [of_rank[number][1] for of_rank in found]
        # A loss is the difference of two float32 numbers as large as the logits.
        rounding = torch.finfo(torch.float32).eps * max(8.0, float(logits.abs().max()))
        for losses, _, in_place in ours:
            torch.testing.assert_close(losses.double(), expected, rtol=2e-6, atol=rounding)
            assert in_place
            assert torch.equal(losses, ours[0][0])
        gradient = torch.cat([gradient for _, gradient, _ in ours], -1)
        assert gradient.dtype == logits.dtype
        # Triton's interpreter (3.9) cuts float32 off to bfloat16; a GPU rounds.
        tolerance = 2.0**-7 if logits.dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(gradient.double(), expected_gradient, rtol=tolerance, atol=rounding)
        assert (gradient[..., FORBIDDEN] == 0).all()
        for (losses, _, _), (reference_losses, _, _) in zip(ours, theirs, strict=True):
            torch.testing.assert_close(losses, reference_losses, rtol=2e-6, atol=rounding)


def test_a_shard_of_padding_only():
    logits, targets, weights = problem((5,))
    padded = torch.cat((logits, torch.full_like(logits, 7.0)), -1)
    forbidden = torch.cat((forbidden_columns(), torch.ones(COLUMNS, dtype=torch.bool)))
    first, second = run_ranks(on_this_rank, 2, [(padded, targets, weights, forbidden)], 8, COLUMNS)
    (losses, left, _), (_, right, _) = first[0][0], second[0][0]
    expected, expected_gradient = oracle(logits, targets, weights)
    torch.testing.assert_close(losses.double(), expected, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(left.double(), expected_gradient, rtol=1e-5, atol=1e-7)
    assert (right == 0).all()


def largest_float32_and_second_backward(problem_):
    logits, targets, _ = problem_
    fused.BLOCK = 8
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.dtype == torch.float32:
                sizes.append(result.numel())
            return result

    owned = (logits.requires_grad_() * 1.0).detach().requires_grad_()
    with Watch():
        loss = fused.vocabulary_parallel_cross_entropy(owned, targets, 0, forbidden_columns(), dist.group.WORLD).sum()
        loss.backward(retain_graph=True)
    try:
        loss.backward()
    except RuntimeError as error:
        return max(sizes), str(error)
    return max(sizes), ""


def test_no_float32_copy_and_no_second_backward_pass():
    """Nothing of float32 is larger than a number per token; overwritten logits are not read again unnoticed."""
    ((largest, message),) = run_ranks(largest_float32_and_second_backward, 1, problem((256,), torch.bfloat16))
    assert largest == 256
    assert "one backward pass" in message


def logits_alive_after_parts(states, weight, targets):
    """Score four parts under activation checkpointing; return how many parts' logits outlive the forward pass, and the
    weight's gradient beside that of the reference."""
    fused.BLOCK = 8
    kept = []

    def scored(kernel, states, targets, weight):
        logits = states @ weight.t()
        kept.append(weakref.ref(logits))
        return kernel.vocabulary_parallel_cross_entropy(logits, targets, 0, forbidden_columns(), dist.group.WORLD)

    gradients = []
    for kernel in (fused, reference):
        leaf = weight.clone().requires_grad_()
        kept.clear()
        parts = [
            checkpoint(scored, kernel, part, part_targets, leaf, use_reentrant=False)
            for part, part_targets in zip(states.split(3), targets.split(3), strict=True)
        ]
        alive = sum(logits() is not None for logits in kept)
        torch.cat(parts).sum().backward()
        gradients.append((alive, leaf.grad))
    return gradients


def test_activation_checkpointing_lets_go_of_the_logits():
    generator = torch.Generator().manual_seed(0)
    _, targets, _ = problem((12,))
    states, weight = torch.randn(12, 5, generator=generator), torch.randn(COLUMNS, 5, generator=generator)
    (((alive, gradient), (_, expected)),) = run_ranks(logits_alive_after_parts, 1, states, weight, targets)
    assert alive == 0
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


def test_what_a_cpu_does_not_have_is_refused():
    with pytest.raises(ConfigurationError, match=r"model\.loss_backend is fused.*valid here: auto, torch, chunked"):
        selection.check("fused", "cpu")
    for backend, most in (("auto", None), ("torch", None), ("chunked", selection.PART_ELEMENTS)):
        kernel = selection.loss_kernel(backend, torch.device("cpu"), 2)
        assert kernel == (reference.vocabulary_parallel_cross_entropy, most)
