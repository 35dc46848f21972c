"""Cross-entropy over a vocabulary that is sharded over the tensor-parallel ranks."""

import torch
import torch.distributed as dist
from torch import Tensor

CHUNK_ELEMENTS = 2**24
"""Logits converted to float32 at a time (64 MiB): the float32 copy of all logits never exists."""


class _VocabularyParallelCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, targets, shard_start, forbidden, group):
        columns = logits.shape[-1]
        flat, flat_targets = logits.reshape(-1, columns), targets.reshape(-1)
        rows = max(1, CHUNK_ELEMENTS // columns)
        log_normalisers = flat.new_empty(len(flat), dtype=torch.float32)
        target_logits = torch.empty_like(log_normalisers)
        parallel = dist.get_world_size(group) > 1
        for begin in range(0, len(flat), rows):
            chunk = _allowed_logits(flat[begin : begin + rows], forbidden)
            largest = chunk.amax(-1)
            if parallel:
                dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
            total = torch.exp(chunk - largest[:, None]).sum(-1)
            column, held = _local_column(flat_targets[begin : begin + rows], shard_start, columns)
            target = torch.where(held, chunk.gather(-1, column[:, None]).squeeze(-1), 0.0)
            if parallel:
                both = torch.stack((total, target))
                dist.all_reduce(both, group=group)
                total, target = both
            log_normalisers[begin : begin + rows] = largest + total.log()
            target_logits[begin : begin + rows] = target
        ctx.save_for_backward(logits, targets, log_normalisers, forbidden)
        ctx.shard_start = shard_start
        return (log_normalisers - target_logits).view(targets.shape)

    @staticmethod
    def backward(ctx, token_gradients):
        logits, targets, log_normalisers, forbidden = ctx.saved_tensors
        columns = logits.shape[-1]
        gradients = torch.empty_like(logits, memory_format=torch.contiguous_format)
        flat, flat_gradients = logits.reshape(-1, columns), gradients.view(-1, columns)
        flat_targets, weights = targets.reshape(-1), token_gradients.reshape(-1).float()
        rows = max(1, CHUNK_ELEMENTS // columns)
        for begin in range(0, len(flat), rows):
            chunk = _allowed_logits(flat[begin : begin + rows], forbidden)
            chunk.sub_(log_normalisers[begin : begin + rows, None]).exp_()
            column, held = _local_column(flat_targets[begin : begin + rows], ctx.shard_start, columns)
            chunk.scatter_add_(-1, column[:, None], -held[:, None].to(chunk.dtype))
            flat_gradients[begin : begin + rows] = chunk.mul_(weights[begin : begin + rows, None])
        return gradients, None, None, None, None


def _allowed_logits(chunk: Tensor, forbidden: Tensor) -> Tensor:
    """Return a float32 copy of the chunk in which forbidden columns can never win."""
    return chunk.float().masked_fill(forbidden, -torch.inf)


def _local_column(targets: Tensor, shard_start: int, columns: int) -> tuple[Tensor, Tensor]:
    """Return (column of each target in this shard, whether the shard holds it)."""
    column = targets - shard_start
    held = (column >= 0) & (column < columns)
    return torch.where(held, column, 0), held


def vocabulary_parallel_cross_entropy(
    logits: Tensor, targets: Tensor, shard_start: int, forbidden: Tensor, group: dist.ProcessGroup
) -> Tensor:
    """Return -log softmax(logits)[target] in float32, one value per token.

    Per-token weights enter through the gradient: the backward pass scales each token's row by the gradient it receives,
    so a weighted loss costs what an unweighted one costs.

    Args:
        logits: [..., columns] this rank's shard of the vocabulary, any floating type.
        targets: [...] int64 token ids of the whole vocabulary, the same on every rank of the group; never forbidden.
        shard_start: the vocabulary's first id in this shard.
        forbidden: bool [columns] ids that can be no target: [MASK] and the padding of the vocabulary.
        group: tensor-parallel group.
    """
    return _VocabularyParallelCrossEntropy.apply(logits, targets, shard_start, forbidden, group)
