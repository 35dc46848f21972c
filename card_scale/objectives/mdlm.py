"""MDLM (arXiv 2406.07524): masked diffusion with bidirectional attention, the log-linear schedule and SUBS.

SUBS: [MASK] is no possible prediction (the model forbids its logit) and unmasked inputs are taken as they are (their
loss has weight 0).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from card_scale.data.samples import Samples
from card_scale.objectives import masked_diffusion
from card_scale.objectives.attention import AttentionKind, Bidirectional
from card_scale.objectives.base import Metric, Objective
from card_scale.objectives.batch import Batch


@dataclass(frozen=True)
class MdlmObjective(Objective):
    """Predicts masked tokens in place, weight 1 / t; the noise level t of a sample is its mask rate.

    Noise levels are stratified over the global batch.
    """

    name: ClassVar[str] = "mdlm"
    attention: ClassVar[AttentionKind] = Bidirectional()
    likelihood_is_exact: ClassVar[bool] = False
    decoders: ClassVar[tuple[str, ...]] = ("mdlm",)
    in_place: ClassVar[bool] = True

    resample: bool = True
    """Corrupt a sample anew in each epoch; false repeats the corruption of its first."""

    def check(self, length: int) -> None:
        """Raise ConfigurationError where no token is left to mask."""
        masked_diffusion.check_length(length)

    def corrupt(self, samples: Samples, seed: int) -> Batch:
        """The training batch. The first input is never masked. Raises ConfigurationError if L is 1."""
        drawn = samples.resampled(self.resample)
        return masked_diffusion.independent_batch(samples, drawn, 1, self.mask_id, seed, masked_diffusion.TRAINING)

    def likelihood(self, samples: Samples, seed: int) -> Batch:
        """One draw of the NELBO's estimator, from the same distribution as in training."""
        return masked_diffusion.independent_batch(samples, samples, 1, self.mask_id, seed, masked_diffusion.EVALUATION)

    @property
    def mean_noise_level(self) -> float:
        """Of an evaluation, which draws from all rates."""
        return masked_diffusion.EVALUATED_MEAN_RATE

    def scored(self, length: int) -> int:
        """All but the first token."""
        return length - 1

    def normaliser(self, batch: Batch) -> torch.Tensor:
        """float64 scalar: the clean tokens of ``batch``."""
        return masked_diffusion.clean_tokens(batch)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Share of masks and cross-entropy of a masked token."""
        return masked_diffusion.metrics(self.name)

    @property
    def charts(self) -> dict[str, list[str]]:
        """Of the metrics."""
        return masked_diffusion.charts(self.name)
