"""Samples for the objectives' tests."""

import torch

from card_scale.data.samples import Samples
from card_scale.objectives.batch import Batch


def samples_of(
    tokens: torch.Tensor,
    sample_ids: torch.Tensor | None = None,
    epochs: torch.Tensor | None = None,
    global_positions: torch.Tensor | None = None,
    batch_size: int | None = None,
) -> Samples:
    """Samples that are, but for what is given, the first global batch of epoch 0, in order."""
    rows = torch.arange(len(tokens))
    return Samples(
        tokens,
        rows if sample_ids is None else sample_ids,
        torch.zeros_like(rows) if epochs is None else epochs,
        rows if global_positions is None else global_positions,
        len(tokens) if batch_size is None else batch_size,
    )


def tensors_of(batch: Batch) -> list[torch.Tensor]:
    """The tensors that an objective has made, in the order of the batch's fields."""
    return [field for field in batch if isinstance(field, torch.Tensor)]
