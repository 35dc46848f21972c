"""The vocabulary-parallel cross-entropy against torch in float64, on one rank and on two."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from card_scale.model.cross_entropy import reference
from card_scale.model.cross_entropy.reference import vocabulary_parallel_cross_entropy
from tests.layouts.processes import run_ranks

COLUMNS = 24
FORBIDDEN = [3, 20, 21, 22, 23]


def forbidden_columns(columns=COLUMNS):
    mask = torch.zeros(columns, dtype=torch.bool)
    mask[[column for column in FORBIDDEN if column < columns]] = True
    return mask


def problem(shape, dtype=torch.float32, seed=0, scale=3.0):
    """Return logits [*shape, COLUMNS], targets and weights of that shape."""
    generator = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(*shape, COLUMNS, generator=generator)).to(dtype)
    allowed = (~forbidden_columns()).nonzero().flatten()
    targets = allowed[torch.randint(0, len(allowed), shape, generator=generator)]
    return logits, targets, torch.rand(shape, generator=generator)


def oracle(logits, targets, weights):
    """Return (losses, gradient of the weighted sum) in float64, without the forbidden columns."""
    exact = logits.detach().double().requires_grad_()
    allowed = exact.masked_fill(forbidden_columns(logits.shape[-1]), -math.inf).flatten(0, -2)
    losses = F.cross_entropy(allowed, targets.flatten(), reduction="none").view(targets.shape)
    (losses * weights.double()).sum().backward()
    return losses.detach(), exact.grad


def ours(logits, targets, weights, shard_start=0, forbidden=None):
    """Return (losses, gradient of the weighted sum)."""
    logits = logits.detach().requires_grad_()
    forbidden = forbidden_columns() if forbidden is None else forbidden
    losses = vocabulary_parallel_cross_entropy(logits, targets, shard_start, forbidden, dist.group.WORLD)
    (losses * weights).sum().backward()
    return losses.detach(), logits.grad


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("shape", [(1,), (7,), (5, 3), (2, 3, 4)])
@pytest.mark.parametrize("scale", [0.0, 3.0, 60.0])
def test_values_and_gradients(shape, scale):
    logits, targets, weights = problem(shape, scale=scale)
    losses, gradient = ours(logits, targets, weights)
    expected, expected_gradient = oracle(logits, targets, weights)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), expected, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("one_rank")
def test_bf16_logits_are_summed_in_float32():
    logits, targets, weights = problem((6, 4), torch.bfloat16)
    losses, gradient = ours(logits, targets, weights)
    expected, expected_gradient = oracle(logits, targets, weights)
    assert losses.dtype == torch.float32
    assert gradient.dtype == torch.bfloat16
    torch.testing.assert_close(losses.double(), expected, rtol=2e-6, atol=2e-6)
    # The gradient itself is rounded to bf16's 8 bits, once.
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=2.0**-8, atol=1e-9)


@pytest.mark.usefixtures("one_rank")
def test_forbidden_columns_have_neither_probability_nor_gradient():
    logits, targets, weights = problem((8,))
    losses, gradient = ours(logits, targets, weights)
    assert (gradient[:, FORBIDDEN] == 0).all()
    logits[:, FORBIDDEN] = 1e4
    again, gradient_again = ours(logits, targets, weights)
    assert torch.equal(again, losses)
    assert torch.equal(gradient_again, gradient)
    # Probabilities sum to one without them, so each row of the gradient sums to zero.
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(8), rtol=0, atol=1e-6)


@pytest.mark.usefixtures("one_rank")
@given(rows=st.integers(1, 20), rows_per_chunk=st.integers(0, 6), seed=st.integers(0, 1000))
@settings(max_examples=30)
def test_chunks_do_not_show(rows, rows_per_chunk, seed):
    logits, targets, weights = problem((rows,), seed=seed)
    whole = ours(logits, targets, weights)
    with pytest.MonkeyPatch.context() as patch:
        # Not a multiple of the columns; 0 rows still mean one.
        patch.setattr(reference, "CHUNK_ELEMENTS", rows_per_chunk * COLUMNS + COLUMNS // 2)
        pieces = ours(logits, targets, weights)
    for one, other in zip(whole, pieces, strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("one_rank")
def test_a_view_with_other_strides():
    """The head's output is [L, B, columns]; a caller may hand over a transposed view."""
    logits, targets, weights = problem((5, 3))
    expected = ours(logits, targets, weights)
    strided = logits.transpose(0, 1).contiguous().transpose(0, 1)
    assert not strided.is_contiguous()
    for one, other in zip(ours(strided, targets, weights), expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("one_rank")
def test_no_float32_copy_of_all_logits():
    """bf16 logits of 64 chunks: float32 tensors of more than a chunk's rows are never made."""
    logits, targets, weights = problem((256,), torch.bfloat16)
    largest = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.dtype == torch.float32:
                largest.append(result.numel())
            return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "CHUNK_ELEMENTS", 4 * COLUMNS)
        with Watch():
            ours(logits, targets, weights)
    assert 4 * COLUMNS <= max(largest) <= 256


def on_this_rank(problems, columns):
    """Return this rank's (losses, gradient) of each problem, its shard being the rank's share of the columns."""
    start = dist.get_rank() * columns
    shard = slice(start, start + columns)
    return [
        ours(logits[..., shard], targets, weights, start, forbidden_columns(2 * columns)[shard])
        for logits, targets, weights in problems
    ]


def test_two_shards_equal_one():
    problems = [problem((6, 3)), problem((4,), torch.bfloat16, seed=1), problem((9,), seed=2, scale=60.0)]
    first, second = run_ranks(on_this_rank, 2, problems, COLUMNS // 2)
    for (logits, targets, weights), (losses, left), (losses_there, right) in zip(problems, first, second, strict=True):
        expected, expected_gradient = oracle(logits, targets, weights)
        assert torch.equal(losses, losses_there)
        torch.testing.assert_close(losses.double(), expected, rtol=2e-6, atol=2e-6)
        tolerance = 2.0**-8 if logits.dtype == torch.bfloat16 else 1e-5
        gradient = torch.cat((left, right), -1).double()
        torch.testing.assert_close(gradient, expected_gradient, rtol=tolerance, atol=1e-7)


def test_a_shard_of_padding_only():
    """A vocabulary that fills less than half of its padded size leaves the second rank nothing."""
    logits, targets, weights = problem((5,))
    padded = torch.cat((logits, torch.full_like(logits, 7.0)), -1)
    (losses, left), (_, right) = (
        results[0] for results in run_ranks(padding_on_this_rank, 2, padded, targets, weights)
    )
    expected, expected_gradient = oracle(logits, targets, weights)
    torch.testing.assert_close(losses.double(), expected, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(left.double(), expected_gradient, rtol=1e-5, atol=1e-7)
    assert (right == 0).all()


def padding_on_this_rank(logits, targets, weights):
    rank = dist.get_rank()
    shard = slice(rank * COLUMNS, (rank + 1) * COLUMNS)
    forbidden = forbidden_columns() if rank == 0 else torch.ones(COLUMNS, dtype=torch.bool)
    return [ours(logits[..., shard], targets, weights, rank * COLUMNS, forbidden)]
