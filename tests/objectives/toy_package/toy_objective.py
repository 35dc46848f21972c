"""An objective that an installed package adds: next tokens from masked inputs, through a sliding window.

It has everything that an objective can have: keys, an attention kind of its own, metrics, a chart, a probe, and a mask
rate that evaluations change and checkpoints keep.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from card_scale.data.samples import Samples
from card_scale.errors import ConfigurationError
from card_scale.objectives import noise
from card_scale.objectives.attention import AttentionKind
from card_scale.objectives.base import Metric, Objective, Probe, check_number, everywhere, masked_inputs, token_losses
from card_scale.objectives.batch import Batch, clean_next_token_batch


@dataclass(frozen=True)
class Window(AttentionKind):
    """Each position sees itself and the ``width - 1`` before it."""

    name: ClassVar[str] = "window"
    width: int = 4

    def visible(self, query: Any, key: Any, positions: int) -> Any:  # noqa: ARG002 - the same at every length
        return (key <= query) & (key > query - self.width)

    def pairs_per_token(self, length: int) -> float:
        return sum(min(position + 1, self.width) for position in range(length)) / length


@dataclass(frozen=True)
class RateSearch:
    """Halves the distance of the mask rate to the mean loss, for no other reason than to learn something."""

    rate: float

    @property
    def shape(self) -> tuple[int, ...]:
        return (2,)

    def observe(self, losses: torch.Tensor, batch: Batch, valid: torch.Tensor) -> torch.Tensor:
        per_sample = losses.double().mean(1)
        return torch.stack(((per_sample * valid).sum(), valid.sum())) + 0 * batch.weights.sum()

    def conclude(self, sums: torch.Tensor) -> dict[str, float]:
        total, count = sums.tolist()
        return {"toy/rate": min(0.9, (self.rate + total / count / 10) / 2)}


@dataclass(frozen=True)
class ToyObjective(Objective):
    """Masks each input but the first with a fixed rate."""

    name: ClassVar[str] = "toy"
    likelihood_is_exact: ClassVar[bool] = False

    rate: float = 0.25
    """Probability of an input to be masked."""
    width: int = 4
    """Positions that a position sees."""

    def __post_init__(self) -> None:
        check_number("rate", self.rate, 0, 0.9)
        check_number("width", self.width, 1, 1000)

    @property
    def attention(self) -> Window:
        return Window(self.width)

    def check(self, length: int) -> None:
        if self.width > length:
            raise ConfigurationError(f"objective.width {self.width} is above model.length {length}")

    def corrupt(self, samples: Samples, seed: int) -> Batch:
        return self._masked(samples, seed, noise.Stream.MASK)

    def likelihood(self, samples: Samples, seed: int) -> Batch:
        return self._masked(samples, seed, noise.Stream.EVALUATION)

    def scored(self, length: int) -> int:
        return length

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return (
            Metric("toy/mask_ratio", masked_inputs, everywhere),
            Metric("toy/loss_masked", token_losses, masked_inputs),
        )

    def probes(self, length: int) -> tuple[Probe, ...]:
        return (
            Probe(
                lambda samples, _seed: clean_next_token_batch(samples),
                lambda by_position: {"toy/validation_nll_last": by_position[length - 1].item()},
            ),
        )

    @property
    def observer(self) -> RateSearch:
        return RateSearch(self.rate)

    def state(self) -> dict[str, float]:
        return {"toy/rate": self.rate}

    def with_state(self, found: Mapping[str, float]) -> "ToyObjective":
        return dataclasses.replace(self, rate=found["toy/rate"])

    def _masked(self, samples: Samples, seed: int, stream: noise.Stream) -> Batch:
        clean = clean_next_token_batch(samples)
        draws = noise.uniforms(seed, samples.sample_ids, samples.epochs, clean.inputs.shape[1], stream)
        masked = draws < self.rate
        masked[:, 0] = False
        return clean._replace(inputs=clean.inputs.masked_fill(masked, self.mask_id), masked=masked)
