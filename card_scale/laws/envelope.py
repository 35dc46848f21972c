"""Chinchilla approach 1: which size is best at each compute, from the envelope of loss curves."""

from typing import NamedTuple

import numpy as np

from card_scale.errors import DataError
from card_scale.laws.formulas import Array
from card_scale.laws.power_law import PowerLaw, fit_power_law, with_bootstrap
from card_scale.laws.runs import Runs

POINTS = 1500
"""Compute values, log-spaced, at which the curves are compared."""


class Envelope(NamedTuple):
    """Approach 1."""

    sizes: PowerLaw
    """Best parameters over compute, exponent ``C``. Its intervals are those of the bootstrap over curves, because the
    points of the envelope are not independent; they have no ends if resamples often leave too few curves."""
    curves: int
    """Sizes that are best somewhere."""


def envelope(runs: Runs, samples: int = 200, seed: int = 0, level: float = 0.95) -> Envelope:
    """Return the power law of the best size over compute.

    The runs of one size are its curve of loss over compute. They must be ends of training (or of branches with a
    decayed learning rate): points inside one long cosine schedule lie above what a run of that length reaches.

    Args:
        runs: at least three sizes, each with two token counts.
        samples: bootstrap resamples of the curves.
        seed: of the resamples.
        level: coverage of the interval.

    Raises:
        DataError: fewer than two sizes are best anywhere inside the range.
    """
    sizes = [size for size in np.unique(runs.N) if len(np.unique(runs.D[size == runs.N])) >= 2]
    if len(sizes) < 3:
        raise DataError(f"{len(sizes)} sizes have two token counts or more; the envelope of curves needs 3")
    compute = np.linspace(np.log(runs.flops().min()), np.log(runs.flops().max()), POINTS)
    curves = np.stack([_curve(runs.take(size == runs.N), compute) for size in sizes])
    every = np.arange(len(sizes))
    found = _best_sizes(np.array(sizes), compute, curves, every)
    if found is None:
        raise DataError("no two sizes besides the smallest and the largest are best at some compute; add sizes between")
    law, winners = found
    draws = np.random.default_rng(seed).integers(len(sizes), size=(samples, len(sizes)))
    repeats = [_best_sizes(np.array(sizes), compute, curves, np.unique(draw)) for draw in draws]
    laws = [again[0] for again in repeats if again is not None]
    return Envelope(with_bootstrap(law, laws if 2 * len(laws) > len(repeats) else [], level), winners)


def _curve(runs: Runs, compute: Array) -> Array:
    """Return the loss at each log compute, linear between the runs, infinite outside them."""
    order = np.argsort(runs.flops())
    return np.interp(compute, np.log(runs.flops()[order]), runs.loss[order], left=np.inf, right=np.inf)


def _best_sizes(sizes: Array, compute: Array, curves: Array, rows: np.ndarray) -> tuple[PowerLaw, int] | None:
    """Return the law and how many sizes are best somewhere, or None if too few are.

    Where the smallest or the largest size is best, a smaller or larger one might have been better: left out.
    """
    chosen = curves[rows]
    winner = chosen.argmin(axis=0)
    inside = np.isfinite(chosen.min(axis=0)) & (winner > 0) & (winner < len(rows) - 1)
    if len(np.unique(winner[inside])) < 2:
        return None
    law = fit_power_law(sizes[rows][winner[inside]], {"C": np.exp(compute[inside])})
    return law, len(np.unique(winner[inside]))
