"""What an objective is: a rule that turns clean tokens into inputs, targets and weights, and nothing else.

Everything here is a pure tensor function: no process group, no state, no host synchronisation. All ranks that hold a
piece of one sample compute the same bits.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch


class ObjectiveBatch(NamedTuple):
    """What the model reads and what it is asked for, B samples of L positions each."""

    inputs: torch.Tensor
    """int64 [B, L]: tokens that the model reads, [MASK] where corrupted."""
    positions: torch.Tensor
    """int64 [L]: rotary positions of the inputs."""
    targets: torch.Tensor
    """int64 [B, L]: clean token to predict at each position; never [MASK]."""
    weights: torch.Tensor
    """float32 [B, L]: weight of each position's cross-entropy."""
    masked: torch.Tensor
    """bool [B, L]: which inputs are [MASK]."""
    noise_level: torch.Tensor
    """float32 [B]: noise level each sample was corrupted at, 0 for a clean one."""


class Objective(ABC):
    """A training objective. Implementations are frozen dataclasses, so equal parameters mean the same function."""

    name: ClassVar[str]
    """Value of the configuration key ``objective.name``."""
    attention: ClassVar[str]
    """Kind of attention that the model needs."""

    @abstractmethod
    def corrupt(
        self, tokens: torch.Tensor, sample_ids: torch.Tensor, epochs: torch.Tensor, seed: int
    ) -> ObjectiveBatch:
        """The training batch: ``tokens`` int64 [B, L + 1] clean, ``sample_ids`` and ``epochs`` int64 [B]."""

    @abstractmethod
    def clean(self, tokens: torch.Tensor) -> ObjectiveBatch:
        """The evaluation batch at clean input: ``tokens`` int64 [B, L + 1], every weight 1."""

    def normaliser(self, batch: ObjectiveBatch) -> torch.Tensor:
        """float64 scalar: what ``batch`` adds to the denominator of the loss; the loss divides by the global sum.

        The sum of weights, not one per sequence, which would hand strongly corrupted sequences the weight back that
        the weights took away. In float64, so that the order of summation, hence the layout, does not show.
        """
        return batch.weights.sum(dtype=torch.float64)


def clean_next_token_batch(tokens: torch.Tensor) -> ObjectiveBatch:
    """Next-token prediction on uncorrupted ``tokens`` int64 [B, L + 1]: inputs the first L, targets the last L."""
    inputs = tokens[:, :-1]
    return ObjectiveBatch(
        inputs=inputs,
        positions=torch.arange(inputs.shape[1], dtype=torch.int64, device=tokens.device),
        targets=tokens[:, 1:],
        weights=torch.ones_like(inputs, dtype=torch.float32),
        masked=torch.zeros_like(inputs, dtype=torch.bool),
        noise_level=torch.zeros(inputs.shape[0], dtype=torch.float32, device=tokens.device),
    )


def weighted_loss(token_losses: torch.Tensor, weights: torch.Tensor, normaliser: torch.Tensor) -> torch.Tensor:
    """Scalar sum(weights * token_losses) / normaliser.

    ``token_losses`` [B, L] are cross-entropies in nats, ``weights`` float32 [B, L], ``normaliser`` the scalar sum of
    :meth:`Objective.normaliser` over the global batch: the losses of all micro-batches and ranks then add up to the
    loss of the global batch.
    """
    return (token_losses * weights).sum() / normaliser
