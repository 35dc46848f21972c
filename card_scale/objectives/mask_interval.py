"""The interval of mask rates whose losses vary least, for training BD3-LM (arXiv 2503.09573, clipped schedules).

The variance of the NELBO's estimator is what separates block diffusion from an autoregressive model; training on a
narrower interval of mask rates lowers it. The search needs no pass of its own: the draws of an evaluation, uniform over
all mask rates, hold those of every interval, and sums over small cells of (mask rate, masks in the block) give the
variance within any of them.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from card_scale.errors import ConfigurationError
from card_scale.objectives.batch import Batch

STEP = 0.05
"""Grid of the intervals' ends."""
WIDTHS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Widths that are searched."""
MASK_RATE_BINS = round(1 / STEP)

MIN_MASK, MAX_MASK, BLOCK_LOSS_VARIANCE = "bd3lm/min_mask", "bd3lm/max_mask", "bd3lm/block_loss_variance"
"""Keys of what a search finds: in records, in a checkpoint's state and as TensorBoard's tags."""


class Interval(NamedTuple):
    """An interval of mask rates and the variance of the losses of blocks drawn from it."""

    low: float
    high: float
    variance: float


def cell_sums(token_losses: torch.Tensor, batch: Batch, valid: torch.Tensor) -> torch.Tensor:
    """What a draw of an evaluation adds to the search.

    ``token_losses`` [B, L] of ``batch``, ``valid`` float64 [B], 1 for samples that count → float64 [20, block + 1, 3]:
    count, sum and sum of squares of the blocks' losses (per token, in nats), by mask rate and by number of masks.
    """
    by_block = (batch.noise_level.shape[1], -1)
    loss = (token_losses.double() * batch.weights).unflatten(1, by_block).mean(2)
    masked = batch.masked.unflatten(1, by_block)
    cells = masked.shape[2] + 1
    rate_bin = (batch.noise_level.double() / STEP).floor().long().clamp(max=MASK_RATE_BINS - 1)
    cell = (rate_bin * cells + masked.sum(2)).flatten()
    values = (torch.stack((torch.ones_like(loss), loss, loss.square()), dim=2) * valid[:, None, None]).flatten(0, 1)
    sums = torch.zeros((MASK_RATE_BINS * cells, 3), dtype=torch.float64, device=loss.device)
    return sums.index_add_(0, cell, values).unflatten(0, (MASK_RATE_BINS, cells))


def least_variance(sums: torch.Tensor) -> Interval:
    """The interval with the least variance, from the sums of :func:`cell_sums` over all draws, float64.

    Blocks count whose mask rate and masked share both lie in the interval, as in training. An interval with fewer than
    two such blocks is passed over. Raises ConfigurationError if that leaves none.
    """
    masks = sums.shape[1] - 1
    found = []
    for width in WIDTHS:
        bins = round(width / STEP)
        for first in range(MASK_RATE_BINS - bins + 1):
            low, high = first * STEP, (first + bins) * STEP
            fewest = math.ceil(low * masks - 1e-9) if first else 0
            most = math.floor(high * masks + 1e-9)
            count, total, squares = sums[first : first + bins, fewest : most + 1].sum((0, 1)).tolist()
            if count >= 2:
                variance = max(0.0, squares - total**2 / count) / (count - 1)
                found.append(Interval(round(low, 2), round(high, 2), variance))
    if not found:
        raise ConfigurationError(
            "objective.search_interval is true, but no interval of mask rates holds two blocks of the evaluation; "
            "raise data.validation_samples"
        )
    return min(found, key=lambda interval: interval.variance)


@dataclass(frozen=True)
class IntervalSearch:
    """The search as the observer of an evaluation's draws."""

    block: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of :func:`cell_sums`."""
        return (MASK_RATE_BINS, self.block + 1, 3)

    def observe(self, token_losses: torch.Tensor, batch: Batch, valid: torch.Tensor) -> torch.Tensor:
        """What a draw adds to the search."""
        return cell_sums(token_losses, batch, valid)

    def conclude(self, sums: torch.Tensor) -> dict[str, float]:
        """The interval of least variance, and the variance there."""
        best = least_variance(sums)
        return {
            MIN_MASK: best.low,
            MAX_MASK: best.high,
            BLOCK_LOSS_VARIANCE: best.variance,
        }
