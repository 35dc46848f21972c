"""Medians, quartiles and paired ratios of timed steps."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BOOTSTRAP_SAMPLES = 2000


class Summary(NamedTuple):
    """Median and quartiles, in the samples' unit."""

    median: float
    low: float
    """First quartile."""
    high: float
    """Third quartile."""


class Ratio(NamedTuple):
    """Median of paired ratios with its 95 % bootstrap interval."""

    median: float
    low: float
    high: float


def summarise(samples: Sequence[float]) -> Summary:
    """Return median and quartiles (linear interpolation between order statistics)."""
    low, median, high = np.quantile(np.asarray(samples, dtype=np.float64), [0.25, 0.5, 0.75])
    return Summary(float(median), float(low), float(high))


def paired_ratio(rounds: Sequence[Sequence[float]], base_rounds: Sequence[Sequence[float]]) -> Ratio:
    """Return the ratio of two arms that took turns.

    Args:
        rounds: positive samples of the arm, by round.
        base_rounds: those of the other arm in the same rounds.

    The ratio of a round is that of the two medians within it, so a drift of the machine's speed that is slower than a
    round cancels. Rounds are drawn with replacement for the interval, which is the same at every call.
    """
    pairs = zip(rounds, base_rounds, strict=True)
    ratios = np.array([np.median(turn) / np.median(base) for turn, base in pairs])
    draws = np.random.default_rng(0).choice(ratios, (BOOTSTRAP_SAMPLES, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return Ratio(float(np.median(ratios)), float(low), float(high))
