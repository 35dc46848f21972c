"""Profile likelihood: the lowest objective for each value of one constant, and the interval it gives."""

from dataclasses import dataclass

import numpy as np

from card_scale.laws.descent import descend_all, free_indices
from card_scale.laws.fit import Fit
from card_scale.laws.formulas import Array
from card_scale.laws.huber import residuals
from card_scale.laws.threshold import rise

DOUBLINGS = 2.0 ** np.arange(-8, 6)
"""Distances from the minimum, in logarithms, of the first values looked at."""

MOST_BASINS = 4
"""Minima of the fit, the lowest first, from which each value's descent starts."""

BETWEEN = 6
"""Values looked at between two of which one is rejected and one is not, twice."""

SWEEPS = 2
"""How often each value's descent is taken up again from its neighbours' ends."""


@dataclass(frozen=True)
class Profile:
    """The profile of one constant."""

    name: str
    values: Array
    """Values of the constant [m], increasing."""
    objectives: Array
    """Lowest objective with the constant at each value [m]."""
    lowest: float
    """Lowest objective of all."""
    lowest_logs: Array
    """Where it was found among ``values``: logarithms of all constants [p]."""
    rise: float
    """Rise above ``lowest`` at which a value is rejected."""
    level: float
    low: float
    """Smallest value that is not rejected; 0 if the bound of the search is not."""
    high: float
    """Largest value that is not rejected; infinite if the bound of the search is not."""


def profile(fit: Fit, name: str, level: float = 0.95) -> Profile:
    """Profile a free constant of a fit between the form's bounds.

    Every value's descent starts at each of the fit's lowest minima and then at its neighbours' ends, so that the
    profile is the lower envelope of all basins. The interval spans all values that are not rejected, gaps included.

    Args:
        fit: the fit.
        name: a constant in ``fit.free``.
        level: coverage of the interval, e.g. 0.95.
    """
    place = fit.form.constants.index(name)
    low, high = (float(np.log(bound)) for bound in fit.form.bounds[name])
    modes = fit.modes[:MOST_BASINS]
    centres = [float(mode.logs[place]) for mode in modes]
    around = np.concatenate([centres[0] - DOUBLINGS, centres[0] + DOUBLINGS])
    grid = np.unique(np.clip(np.concatenate([around, centres, [low, high]]), low, high))
    starts = np.stack([mode.logs for mode in modes])
    ends, heights = _lowest(fit, place, grid, np.broadcast_to(starts, (len(grid), *starts.shape)))
    allowed = rise(residuals(fit.form, fit.best.logs, fit.runs), len(fit.free), level)
    for _ in range(SWEEPS):
        ends, heights = _sweep(fit, place, grid, ends, heights)
    for _ in range(2):
        limit = min(float(heights.min()), fit.best.objective) + allowed
        more = _between(grid, heights, limit)
        if not len(more):
            break
        nearest = np.abs(more[:, None] - grid).argsort(axis=1)[:, :2]
        new_ends, new_heights = _lowest(fit, place, more, ends[nearest])
        order = np.argsort(np.concatenate([grid, more]))
        grid = np.concatenate([grid, more])[order]
        ends, heights = np.concatenate([ends, new_ends])[order], np.concatenate([heights, new_heights])[order]
    lowest = min(float(heights.min()), fit.best.objective)
    ends_of_interval = interval(grid, heights, lowest + allowed)
    return Profile(
        name=name,
        values=np.exp(grid),
        objectives=heights,
        lowest=lowest,
        lowest_logs=ends[heights.argmin()],
        rise=allowed,
        level=level,
        low=fit.value(name, ends_of_interval[0]),
        high=fit.value(name, ends_of_interval[1]),
    )


def interval(grid: Array, heights: Array, limit: float) -> tuple[float, float]:
    """Return the smallest and the largest abscissa at which the curve is at most ``limit``, linear between points."""
    inside = np.flatnonzero(heights <= limit)
    first, last = int(inside[0]), int(inside[-1])
    low, high = float(grid[first]), float(grid[last])
    if first > 0:
        low = _crossing(grid, heights, first, first - 1, limit)
    if last < len(grid) - 1:
        high = _crossing(grid, heights, last, last + 1, limit)
    return low, high


def _crossing(grid: Array, heights: Array, inner: int, outer: int, limit: float) -> float:
    share = (limit - heights[inner]) / (heights[outer] - heights[inner])
    return float(grid[inner] + share * (grid[outer] - grid[inner]))


def _between(grid: Array, heights: Array, limit: float) -> Array:
    """Return new abscissae wherever the curve crosses ``limit`` between two neighbours."""
    crossed = np.flatnonzero((heights[:-1] <= limit) != (heights[1:] <= limit))
    shares = np.arange(1, BETWEEN + 1) / (BETWEEN + 1)
    return (grid[crossed, None] + shares * (grid[crossed + 1] - grid[crossed])[:, None]).ravel()


def _lowest(fit: Fit, place: int, grid: Array, starts: Array) -> tuple[Array, Array]:
    """Return the ends [m, p] and heights [m] of the lowest descents with the constant held at each of ``grid`` [m].

    Args:
        starts: [m, s, p], s starts for each value.
    """
    free = free_indices(fit.form, (*fit.fixed, fit.form.constants[place]))
    held = np.array(starts)
    held[:, :, place] = grid[:, None]
    ends, heights = descend_all(fit.form, held.reshape(-1, held.shape[-1]), fit.runs, free)
    shaped = np.where(np.isfinite(heights), heights, np.inf).reshape(held.shape[:2])
    best = shaped.argmin(axis=1)
    rows = np.arange(len(grid))
    return ends.reshape(held.shape)[rows, best], shaped[rows, best]


def _sweep(fit: Fit, place: int, grid: Array, ends: Array, heights: Array) -> tuple[Array, Array]:
    """Take every descent up again from the ends of both neighbours and keep what is lower."""
    neighbours = np.stack([np.roll(ends, 1, axis=0), np.roll(ends, -1, axis=0)], axis=1)
    again, lower = _lowest(fit, place, grid, neighbours)
    better = lower < heights
    return np.where(better[:, None], again, ends), np.where(better, lower, heights)
