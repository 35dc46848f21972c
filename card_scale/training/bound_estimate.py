"""The mean of a bound over draws of masks, with less noise than the plain mean has, and its standard error.

How much the tokens of a sample weigh in all, 1 / t for each mask at a rate t, is random, most of all at low rates, and
is known in the mean, as the rates are: one for each scored token. What a draw's weights and rates are beyond that is
taken off, at the price that masked tokens have at a rate: a line a + b t, fitted to the other draws, which leaves the
mean as it is (a cross-fitted control variate).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from card_scale.objectives.batch import Batch


class Estimate(NamedTuple):
    """Of the mean over samples, in nats per token."""

    mean: float
    standard_error: float
    """Of the noise: how far other draws over the same samples would lie apart."""


SUMS = 5
LOSS, WEIGHT, WEIGHTED_RATE, WEIGHTED_SQUARE, LOSS_BY_RATE = range(SUMS)
"""Places of the sums of a sample."""


def sums_of_samples(token_losses: Tensor, batch: Batch, scored: int) -> Tensor:
    """Sum w l, w, w t, w t^2 and w t l over each sample's tokens and divide by the number of those that are scored.

    ``token_losses`` [B, L] → float64 [5, B].
    """
    length = token_losses.shape[1]
    rate = batch.noise_level.double().repeat_interleave(length // batch.noise_level.shape[1], dim=1)
    weight, loss = batch.weights.double(), token_losses.double()
    weighted = weight * rate
    sums = (weight * loss, weight, weighted, weighted * rate, weighted * loss)
    return torch.stack([values.sum(1) for values in sums]) / scored


def estimate(sums: Tensor, valid: Tensor, over_ranks: Callable[[Tensor], Tensor], mean_rate: float | None) -> Estimate:
    """Return the estimate from :func:`sums_of_samples` in each draw, its error from the scatter of each sample's draws.

    Args:
        sums: float64 [draws, 5, samples] of this rank, 0 in rows that do not count.
        valid: float64 [samples], 1 for samples that count.
        over_ranks: sums a tensor over all ranks, each sample being on one.
        mean_rate: of a scored token, over all draws that there could be. What a draw's rates do to the loss is taken
            off with its weights; nothing is where the mean is not known (None).
    """
    per_sample = sums[:, LOSS]
    if mean_rate is not None:
        level, slope = prices(over_ranks(sums.sum(2)))
        per_sample = per_sample - level[:, None] * (sums[:, WEIGHT] - valid)
        per_sample = per_sample - slope[:, None] * (sums[:, WEIGHTED_RATE] - mean_rate * valid)
    local = torch.stack((per_sample.mean(0).sum(), per_sample.var(0).sum() / len(sums), valid.sum()))
    total, variance, samples = over_ranks(local).tolist()
    return Estimate(total / samples, variance**0.5 / samples)


def prices(totals: Tensor) -> tuple[Tensor, Tensor]:
    """Return (a, b) [draws] each: of the line a + b t that fits best, weighted, the losses of all draws but one.

    ``totals`` float64 [draws, 5] in the order of :func:`sums_of_samples`. Where all rates are alike b is 0; where
    nothing is masked both are.
    """
    others = totals.sum(0) - totals
    loss, weight, rate, square, by_rate = others.unbind(1)
    spread = weight * square - rate.square()
    has_spread = spread > 1e-9 * weight * square
    slope = torch.where(has_spread, (weight * by_rate - rate * loss) / spread, 0.0)
    level = torch.where(weight > 0, (loss - slope * rate) / weight, 0.0)
    return level, slope
