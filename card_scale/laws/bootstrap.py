"""Bootstrap: the fit repeated on runs drawn with replacement."""

import numpy as np

from card_scale.laws.descent import descend_all, free_indices
from card_scale.laws.fit import Fit
from card_scale.laws.formulas import Array

MOST_BASINS = 4
"""Minima of the fit, the lowest first, from which each resample is fitted again."""


def bootstrap(fit: Fit, samples: int, seed: int = 0, groups: np.ndarray | None = None) -> Array:
    """Return the logarithms of the constants [samples, p] of the lowest minimum of each resample.

    Args:
        fit: the fit.
        samples: resamples.
        seed: of the draws.
        groups: a number for each run [n]; runs with one number are drawn together (errors within are dependent).
            Default: runs are drawn one by one.
    """
    count = len(fit.runs.loss)
    members = np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1].ravel()
    drawn = int(members.max()) + 1
    draws = np.random.default_rng(seed).multinomial(drawn, np.full(drawn, 1.0 / drawn), samples)
    weights = draws[:, members].astype(np.float64)
    starts = np.stack([mode.logs for mode in fit.modes[:MOST_BASINS]])
    basins, places = starts.shape
    free = free_indices(fit.form, tuple(fit.fixed))
    repeated = np.broadcast_to(starts, (samples, basins, places)).reshape(-1, places)
    ends, heights = descend_all(fit.form, repeated, fit.runs, free, np.repeat(weights, basins, axis=0))
    best = np.where(np.isfinite(heights), heights, np.inf).reshape(samples, basins).argmin(axis=1)
    return ends.reshape(samples, basins, places)[np.arange(samples), best]


def percentile_interval(fit: Fit, samples: Array, name: str, level: float) -> tuple[float, float]:
    """Return the central interval of a constant over resamples, 0 or infinity at a bound of the search.

    Args:
        fit: the fit.
        samples: what :func:`bootstrap` returned.
        name: a free constant.
        level: share of the resamples inside.
    """
    column = samples[:, fit.form.constants.index(name)]
    low, high = np.quantile(column, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return fit.value(name, float(low)), fit.value(name, float(high))
