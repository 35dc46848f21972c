"""The same as :mod:`card_scale.model.cross_entropy.reference` in two Triton kernels, for a GPU.

Forward: one read of the logits, with a running maximum and sum (online softmax, Milakov and Gimelshein,
arXiv 1805.02867). Backward: one read and one write, in place: the gradient takes the memory of the logits, which
nothing reads after the loss (a linear layer's backward pass needs its input and weight). No float32 copy at any time.

With TRITON_INTERPRET=1 in the environment, before the first import of this module, the kernels run on a CPU, for tests.
"""

import torch
import torch.distributed as dist
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096
"""Columns that a program holds at a time; a program goes through a row."""

WARPS = 8


@triton.jit
def _statistics(
    logits, targets, forbidden, largest, total, target_logit, columns, shard_start, at_a_time: tl.constexpr
):
    """Per row: the largest allowed logit, the sum of exponentials above it, and the target's logit, 0 elsewhere."""
    row = tl.program_id(0).to(tl.int64)
    base = logits + row * columns
    maximum = -float("inf")
    summed = 0.0
    for begin in range(0, columns, at_a_time):
        column = begin + tl.arange(0, at_a_time)
        inside = column < columns
        value = tl.load(base + column, mask=inside, other=-float("inf")).to(tl.float32)
        value = tl.where(tl.load(forbidden + column, mask=inside, other=1) != 0, -float("inf"), value)
        above = tl.maximum(maximum, tl.max(value, 0))
        # Where no column is allowed so far there is nothing to rescale, and -inf - -inf would be no number.
        reference = tl.where(above == -float("inf"), 0.0, above)
        summed = summed * tl.exp(maximum - reference) + tl.sum(tl.exp(value - reference), 0)
        maximum = above
    column = tl.load(targets + row) - shard_start
    held = (column >= 0) & (column < columns)
    tl.store(largest + row, maximum)
    tl.store(total + row, summed)
    tl.store(target_logit + row, tl.load(base + column, mask=held, other=0.0).to(tl.float32))


@triton.jit
def _gradient_in_place(
    logits, targets, forbidden, log_normaliser, weight, columns, shard_start, at_a_time: tl.constexpr
):
    """Per row: (softmax - one-hot) * weight, written over the logits."""
    row = tl.program_id(0).to(tl.int64)
    base = logits + row * columns
    normaliser = tl.load(log_normaliser + row)
    scale = tl.load(weight + row)
    target = tl.load(targets + row) - shard_start
    for begin in range(0, columns, at_a_time):
        column = begin + tl.arange(0, at_a_time)
        inside = column < columns
        value = tl.load(base + column, mask=inside, other=-float("inf")).to(tl.float32)
        excluded = tl.load(forbidden + column, mask=inside, other=1) != 0
        probability = tl.where(excluded, 0.0, tl.exp(value - normaliser))
        gradient = (probability - tl.where(column == target, 1.0, 0.0)) * scale
        tl.store(base + column, gradient.to(logits.dtype.element_ty), mask=inside)


class _FusedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, targets, shard_start, forbidden, group):
        columns = logits.shape[-1]
        # The kernels count places from the rows' begin.
        flat, flat_targets = logits.reshape(-1, columns).contiguous(), targets.reshape(-1).contiguous()
        flags = forbidden.view(torch.uint8)
        largest, total, target = (flat.new_empty(len(flat), dtype=torch.float32) for _ in range(3))
        _statistics[(len(flat),)](
            flat, flat_targets, flags, largest, total, target, columns, shard_start, BLOCK, num_warps=WARPS
        )
        if dist.get_world_size(group) > 1:
            own = largest.clone()
            dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
            both = torch.stack((total * torch.exp(own - largest), target))
            dist.all_reduce(both, group=group)
            total, target = both
        log_normaliser = largest + total.log()
        # The logits too, so that activation checkpointing lets go of them. Autograd does not see them overwritten.
        ctx.save_for_backward(flat, flat_targets, flags, log_normaliser)
        ctx.shape, ctx.shard_start, ctx.is_used = logits.shape, shard_start, False
        return (log_normaliser - target).view(targets.shape)

    @staticmethod
    def backward(ctx, token_gradients):
        if ctx.is_used:
            raise RuntimeError("the fused cross-entropy overwrites its logits: it has one backward pass")
        ctx.is_used = True
        flat, targets, flags, log_normaliser = ctx.saved_tensors
        weights = token_gradients.reshape(-1).float().contiguous()
        _gradient_in_place[(len(flat),)](
            flat, targets, flags, log_normaliser, weights, flat.shape[1], ctx.shard_start, BLOCK, num_warps=WARPS
        )
        return flat.view(ctx.shape), None, None, None, None


def vocabulary_parallel_cross_entropy(
    logits: Tensor, targets: Tensor, shard_start: int, forbidden: Tensor, group: dist.ProcessGroup
) -> Tensor:
    """Return -log softmax(logits)[target] in float32, one value per token; the backward pass overwrites ``logits``.

    Arguments and weights per token are those of the reference. One backward pass; a second raises RuntimeError.
    """
    return _FusedCrossEntropy.apply(logits, targets, shard_start, forbidden, group)
