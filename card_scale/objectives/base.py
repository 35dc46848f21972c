"""What an objective is: a rule that turns clean tokens into inputs, targets and weights, and nothing else.

Everything here is a pure tensor function: no process group, no state, no host synchronisation. All ranks that hold a
piece of one sample compute the same bits.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple

import torch

from card_scale.errors import ConfigurationError


class AttentionKind(NamedTuple):
    """Which positions see which."""

    name: Literal["causal", "bidirectional", "block_diffusion"]
    block: int = 0
    """Block size of block diffusion."""


class Samples(NamedTuple):
    """Clean samples and everything that their noise is a function of, besides the seed."""

    tokens: torch.Tensor
    """int64 [B, L + 1]"""
    sample_ids: torch.Tensor
    """int64 [B]"""
    epochs: torch.Tensor
    """int64 [B]"""
    global_positions: torch.Tensor
    """int64 [B]: place of each sample in the whole run, update * batch_size + place in the global batch. In an
    evaluation a draw over the whole validation set counts as one batch."""
    batch_size: int
    """Samples of the global batch over all ranks: those that share the strata of the noise levels."""

    def resampled(self, resample: bool) -> "Samples":
        """The same samples, or unless ``resample`` ones whose noise depends on their id, not on epoch and batch."""
        if resample:
            return self
        return self._replace(epochs=torch.zeros_like(self.epochs), global_positions=self.sample_ids, batch_size=1)


class ObjectiveBatch(NamedTuple):
    """What the model reads and what it is asked for: B samples, L predictions each, of M inputs.

    M is L, or 2L for block diffusion, whose clean half follows the noisy one.
    """

    inputs: torch.Tensor
    """int64 [B, M]: tokens that the model reads, [MASK] where corrupted."""
    positions: torch.Tensor
    """int64 [M]: rotary positions of the inputs."""
    targets: torch.Tensor
    """int64 [B, L]: clean token to predict at each position; never [MASK]."""
    weights: torch.Tensor
    """float32 [B, L]: weight of each position's cross-entropy."""
    masked: torch.Tensor
    """bool [B, L]: which of the first L inputs are [MASK]."""
    noise_level: torch.Tensor
    """float32 [B, blocks]: noise level each block was corrupted at, 0 for a clean one. A sample is one block, but under
    block diffusion."""


class Objective(ABC):
    """A training objective. Implementations are frozen dataclasses, so equal parameters mean the same function."""

    name: ClassVar[str]
    """Value of the configuration key ``objective.name``."""

    @property
    @abstractmethod
    def attention(self) -> AttentionKind:
        """Kind of attention that the model needs."""

    @property
    @abstractmethod
    def likelihood_is_exact(self) -> bool:
        """Whether :meth:`likelihood` gives the negative log-likelihood itself, not an estimate of a bound on it."""

    @abstractmethod
    def corrupt(self, samples: Samples, seed: int) -> ObjectiveBatch:
        """The training batch."""

    @abstractmethod
    def likelihood(self, samples: Samples, seed: int) -> ObjectiveBatch:
        """The evaluation batch whose weighted losses, summed per sample and divided by :meth:`scored`, are nats per
        token: exact, or in expectation over the noise an upper bound."""

    @abstractmethod
    def scored(self, length: int) -> int:
        """Number of tokens of a sample with ``length`` inputs that the objective predicts."""

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
        noise_level=torch.zeros((inputs.shape[0], 1), dtype=torch.float32, device=tokens.device),
    )


def weighted_loss(token_losses: torch.Tensor, weights: torch.Tensor, normaliser: torch.Tensor) -> torch.Tensor:
    """Scalar sum(weights * token_losses) / normaliser.

    ``token_losses`` [B, L] are cross-entropies in nats, ``weights`` float32 [B, L], ``normaliser`` the scalar sum of
    :meth:`Objective.normaliser` over the global batch: the losses of all micro-batches and ranks then add up to the
    loss of the global batch.
    """
    return (token_losses * weights).sum() / normaliser


def check_number(key: str, value: float, low: float, high: float) -> None:
    """Raises ConfigurationError unless ``value`` is a finite number from ``low`` to ``high``."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and low <= value <= high):
        valid = f"from {low} to {high}" if math.isfinite(high) else f"of at least {low}"
        raise ConfigurationError(f"objective.{key} is {value!r}; valid is a finite number {valid}")
