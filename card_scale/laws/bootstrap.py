"""Bootstrap: the fit repeated on runs drawn with replacement."""

import numpy as np

from card_scale.laws.descent import descend_all, free_indices
from card_scale.laws.fit import Fit
from card_scale.laws.formulas import Array
from card_scale.waiting import Say, silent

MOST_BASINS = 4
"""Minima of the fit, the lowest first, from which each resample is fitted again."""


AT_ONCE = 100
"""Resamples that are fitted together."""


def bootstrap(fit: Fit, samples: int, seed: int = 0, groups: np.ndarray | None = None, say: Say = silent) -> Array:
    """Return the logarithms of the constants [samples, p] of the lowest minimum of each resample.

    Args:
        fit: the fit.
        samples: resamples.
        seed: of the draws.
        groups: a number for each run [n]; runs with one number are drawn together (errors within are dependent).
            Default: runs are drawn one by one.
        say: told how many resamples have been fitted.
    """
    count = len(fit.runs.loss)
    members = np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1].ravel()
    drawn = int(members.max()) + 1
    draws = np.random.default_rng(seed).multinomial(drawn, np.full(drawn, 1.0 / drawn), samples)
    weights = draws[:, members].astype(np.float64)
    starts = np.stack([mode.logs for mode in fit.modes[:MOST_BASINS]])
    basins, places = starts.shape
    free = free_indices(fit.form, tuple(fit.fixed))
    found = []
    for first in range(0, samples, AT_ONCE):
        say(f"bootstrap, {first} of {samples} resamples")
        part = weights[first : first + AT_ONCE]
        repeated = np.broadcast_to(starts, (len(part), basins, places)).reshape(-1, places)
        ends, heights = descend_all(fit.form, repeated, fit.runs, free, np.repeat(part, basins, axis=0))
        best = np.where(np.isfinite(heights), heights, np.inf).reshape(len(part), basins).argmin(axis=1)
        found.append(ends.reshape(len(part), basins, places)[np.arange(len(part)), best])
    return np.concatenate(found)


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
