"""Global gradient norm, clipping and the tied embedding's sum, for engines that leave them to us."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from card_scale.distributed import process_groups
from card_scale.model.weights import LogicalWeight


def tied_embeddings(weights: list[tuple[nn.Parameter, LogicalWeight]]) -> list[nn.Parameter]:
    """Return this rank's copies of an embedding that another pipeline stage holds too (the first and the last do)."""
    return [parameter for parameter, logical in weights if logical.name == "embedding.weight"]


def sum_over_tied_copies(gradient: Tensor) -> None:
    """Add up, in place, the gradients of the first and the last stage's copy of the embedding."""
    group = process_groups.tied_embedding_group()
    if group is not None and dist.get_world_size(group) > 1:
        dist.all_reduce(gradient, group=group)


def global_norm(gradients: list[tuple[Tensor, LogicalWeight]], groups: list[dist.ProcessGroup]) -> Tensor:
    """Return the 2-norm over the whole model, float32 scalar.

    Args:
        gradients: this rank's (gradient or shard of it, place in the model); replicas are told by ``is_primary``.
        groups: process groups over which different ranks hold different elements.
    """
    primary = [gradient for gradient, logical in gradients if logical.is_primary and gradient.numel()]
    squares = [torch.linalg.vector_norm(gradient.float()).square() for gradient in primary]
    total = torch.stack(squares).sum() if squares else torch.zeros((), device=gradients[0][0].device)
    for group in groups:
        dist.all_reduce(total, group=group)
    return total.sqrt()


def clip(gradients: list[Tensor], norm: Tensor, largest: float) -> None:
    """Scale gradients in place so that their global norm is at most ``largest`` (0: leave them), with no host sync."""
    if largest > 0:
        scale = (largest / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, scale)
