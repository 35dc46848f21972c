"""What an objective is: a rule that turns clean tokens into inputs, targets and weights, and all that depends on it.

The rest of the code asks an objective and never its name: what it reads and predicts, with which attention, what it
reports of a step, how it is evaluated, what it keeps. Everything here is a pure tensor function: no process group, no
host synchronisation. All ranks that hold a piece of one sample compute the same bits.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol

import torch

from card_scale.data.samples import Samples
from card_scale.data.tokenizer import MASK_ID
from card_scale.errors import ConfigurationError
from card_scale.objectives.attention import AttentionKind
from card_scale.objectives.batch import Batch

NOT_A_KEY = {"key": False}
"""Metadata of a field that no configuration sets."""


class Metric(NamedTuple):
    """A mean over positions of the global batch, recorded of every logged step."""

    name: str
    """Key of ``metrics.jsonl`` and TensorBoard tag, beginning with the objective's name and a slash."""
    value: Callable[[Batch, torch.Tensor], torch.Tensor]
    """(batch, token losses [B, L]) → [B, L], what is averaged."""
    over: Callable[[Batch], torch.Tensor]
    """batch → bool [B, L], the positions that it is averaged over; without any the metric is left out."""


class Probe(NamedTuple):
    """An evaluation beside the likelihood: mean cross-entropies under a corruption of its own."""

    corrupt: Callable[[Samples, int], Batch]
    """(samples, seed) → the batch that the model is asked."""
    results: Callable[[torch.Tensor], dict[str, float]]
    """Mean cross-entropy at each position over the samples, float64 [L] → what is recorded, by key."""


class SampledLikelihood(NamedTuple):
    """A likelihood that depends on random choices, recorded as the mean over draws with its standard error. It stands
    beside the objective's own and is compared with nothing else."""

    name: str
    """Key of the mean in nats per predicted token; ``_standard_error`` is appended for its error."""
    corrupt: Callable[[Samples, int], Batch]
    """(samples of a draw, seed) → the batch that the model is asked."""


class Observer(Protocol):
    """What an objective learns from the draws of its likelihood."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the sums."""

    def observe(self, token_losses: torch.Tensor, batch: Batch, valid: torch.Tensor) -> torch.Tensor:
        """What a batch adds to the sums, float64; ``valid`` float64 [B] is 1 for rows that count."""

    def conclude(self, sums: torch.Tensor) -> dict[str, float]:
        """What the sums over all draws and samples say, by key of ``metrics.jsonl`` and of :meth:`Objective.state`."""


@dataclass(frozen=True)
class Objective(ABC):
    """A training objective. Implementations are frozen dataclasses, so equal parameters mean the same function.

    Their fields are the keys of the configuration group ``objective``, checked in ``__post_init__``, each with its
    meaning in a docstring under it.
    """

    name: ClassVar[str]
    """Value of the configuration key ``objective.name``, and first part of the objective's metrics."""

    decoders: ClassVar[tuple[str, ...]] = ()
    """Methods of generation (``card_scale.generation``) that a model trained so can be decoded by."""

    in_place: ClassVar[bool] = False
    """Whether an output is about the token at its own position, not about the next."""

    mask_id: int = field(default=MASK_ID, kw_only=True, metadata=NOT_A_KEY)
    """Token id of [MASK]."""

    @property
    @abstractmethod
    def attention(self) -> AttentionKind:
        """Kind of attention that the model needs."""

    @property
    @abstractmethod
    def likelihood_is_exact(self) -> bool:
        """Whether :meth:`likelihood` gives the negative log-likelihood itself, not an estimate of a bound on it."""

    @abstractmethod
    def corrupt(self, samples: Samples, seed: int) -> Batch:
        """The training batch."""

    @abstractmethod
    def likelihood(self, samples: Samples, seed: int) -> Batch:
        """The evaluation batch whose weighted losses, summed per sample and divided by :meth:`scored`, are nats per
        token: exact, or in expectation over the noise an upper bound."""

    @property
    def mean_noise_level(self) -> float | None:
        """Mean noise level of a scored token over all draws of :meth:`likelihood`, where each has weight 1 in the mean
        at its level, so that the estimate of the bound can be less noisy; None where that is not so."""
        return None

    @abstractmethod
    def scored(self, length: int) -> int:
        """Number of tokens of a sample with ``length`` clean tokens that the objective predicts."""

    def check(self, length: int) -> None:  # noqa: B027 - most objectives train at any length
        """Raise ConfigurationError where the objective cannot train on samples of ``length`` tokens."""

    def normaliser(self, batch: Batch) -> torch.Tensor:
        """float64 scalar: what ``batch`` adds to the denominator of the loss; the loss divides by the global sum.

        The sum of weights, not one per sequence, which would hand strongly corrupted sequences the weight back that
        the weights took away. In float64, so that the order of summation, hence the layout, does not show.
        """
        return batch.weights.sum(dtype=torch.float64)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What is recorded of a step beside the loss."""
        return ()

    @property
    def charts(self) -> dict[str, list[str]]:
        """TensorBoard's charts of the objective: title → patterns of tags, matched at the start."""
        return {metric.name: [rf"{metric.name}$"] for metric in self.metrics}

    def probes(self, length: int) -> tuple[Probe, ...]:  # noqa: ARG002 - none at any length
        """What is evaluated beside the likelihood."""
        return ()

    def sampled_likelihoods(self, length: int) -> tuple[SampledLikelihood, ...]:  # noqa: ARG002 - none at any length
        """What else is evaluated as a mean over random choices."""
        return ()

    @property
    def observer(self) -> Observer | None:
        """What watches the draws of the likelihood; None where nothing is learnt from them."""
        return None

    @property
    def learns_from_evaluation(self) -> bool:
        """Whether training takes over what an evaluation finds, so that evaluations are part of the trajectory."""
        return self.observer is not None

    def state(self) -> dict[str, float]:
        """What the objective has learnt and a checkpoint must keep."""
        return {}

    def with_state(self, found: Mapping[str, float]) -> "Objective":  # noqa: ARG002 - nothing to take over
        """The objective with what :meth:`state` kept in a checkpoint, or what an evaluation found."""
        return self


def everywhere(batch: Batch) -> torch.Tensor:
    """All positions of a batch, for a metric."""
    return torch.ones_like(batch.masked)


def masked_inputs(batch: Batch, _token_losses: torch.Tensor | None = None) -> torch.Tensor:
    """The masked positions of a batch, for a metric."""
    return batch.masked


def token_losses(_batch: Batch, losses: torch.Tensor) -> torch.Tensor:
    """The cross-entropies themselves, for a metric."""
    return losses


def check_number(key: str, value: float, low: float, high: float) -> None:
    """Raise ConfigurationError unless ``value`` is a finite number from ``low`` to ``high``."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and low <= value <= high):
        valid = f"from {low} to {high}" if math.isfinite(high) else f"of at least {low}"
        raise ConfigurationError(f"objective.{key} is {value!r}; valid is a finite number {valid}")


def check_integer(key: str, value: int, low: int) -> None:
    """Raise ConfigurationError unless ``value`` is an integer of at least ``low``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ConfigurationError(f"objective.{key} is {value!r}; valid is an integer of at least {low}")


def check_choice(key: str, value: object, valid: tuple[object, ...]) -> None:
    """Raise ConfigurationError unless ``value`` is one of ``valid``, its type included (1 is not true)."""
    if not any(value is choice or (value == choice and type(value) is type(choice)) for choice in valid):
        listed = ", ".join(str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in valid)
        raise ConfigurationError(f"objective.{key} is {value!r}; valid are {listed}")
