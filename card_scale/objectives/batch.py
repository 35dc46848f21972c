"""What the model reads of samples and what it is asked for."""

from typing import Any, NamedTuple

import torch

from card_scale.data.samples import Samples
from card_scale.objectives.attention import AttentionKind


class Batch(NamedTuple):
    """B samples as an objective presents them to the model: L predictions each, of M positions.

    M is L times the attention kind's ``inputs_per_token``.
    """

    samples: Samples
    """The clean samples that it is made of."""
    inputs: torch.Tensor
    """int64 [B, M]: tokens that the model reads, [MASK] where corrupted. [B, L] where the kind of attention has a query
    stream, whose positions read none."""
    positions: torch.Tensor
    """int64 [B, M]: rotary positions. One row expanded over the batch (stride 0) costs nothing more than one row."""
    targets: torch.Tensor
    """int64 [B, L]: clean token to predict at each position; never [MASK]."""
    weights: torch.Tensor
    """float32 [B, L]: weight of each position's cross-entropy."""
    masked: torch.Tensor
    """bool [B, L]: which of the first L inputs are [MASK]."""
    noise_level: torch.Tensor
    """float32 [B, blocks]: noise level each block was corrupted at, 0 for a clean one. A sample is one block, but under
    block diffusion."""
    dropout_keys: torch.Tensor | None = None
    """int64 [B, 2] (see ``card_scale.model.dropout``), or None for no dropout."""
    attention: AttentionKind | None = None
    """Kind of attention, where it is not the objective's own."""

    def rows(self, rows: slice) -> "Batch":
        """Some of the rows: a micro-batch."""
        fields: dict[str, Any] = self._asdict()
        tensors = {name: field[rows] for name, field in fields.items() if isinstance(field, torch.Tensor)}
        return Batch(**fields | tensors | {"samples": self.samples.rows(rows)})

    def micro_batches(self, size: int) -> list["Batch"]:
        """Consecutive rows, ``size`` at a time."""
        return [self.rows(slice(begin, begin + size)) for begin in range(0, len(self.inputs), size)]


def shared_positions(positions: torch.Tensor, rows: int) -> torch.Tensor:
    """``positions`` int64 [M] for each of the rows, [rows, M], without copies."""
    return positions.expand(rows, -1)


def next_token_positions(samples: Samples) -> torch.Tensor:
    """int64 [B, L]: 0 to L - 1 in each row, without copies."""
    rows, length = samples.tokens.shape[0], samples.tokens.shape[1] - 1
    return shared_positions(torch.arange(length, dtype=torch.int64, device=samples.tokens.device), rows)


def clean_next_token_batch(samples: Samples) -> Batch:
    """Next-token prediction on uncorrupted tokens: inputs the first L, targets the last L, every weight 1."""
    tokens = samples.tokens
    inputs = tokens[:, :-1]
    return Batch(
        samples=samples,
        inputs=inputs,
        positions=next_token_positions(samples),
        targets=tokens[:, 1:],
        weights=torch.ones_like(inputs, dtype=torch.float32),
        masked=torch.zeros_like(inputs, dtype=torch.bool),
        noise_level=torch.zeros((inputs.shape[0], 1), dtype=torch.float32, device=tokens.device),
    )


def weighted_loss(token_losses: torch.Tensor, weights: torch.Tensor, normaliser: torch.Tensor) -> torch.Tensor:
    """Scalar sum(weights * token_losses) / normaliser.

    ``token_losses`` [B, L] are cross-entropies in nats, ``weights`` float32 [B, L], ``normaliser`` the scalar sum of
    ``Objective.normaliser`` over the global batch: the losses of all micro-batches and ranks then add up to the loss of
    the global batch.
    """
    return (token_losses * weights).sum() / normaliser
