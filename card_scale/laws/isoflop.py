"""Chinchilla approach 2: the best size for each compute budget from parabolas through runs of equal compute."""

from typing import NamedTuple

import numpy as np

from card_scale.errors import DataError
from card_scale.laws.compute import FLOPS_PER_PARAMETER_AND_TOKEN
from card_scale.laws.power_law import PowerLaw, fit_power_law
from card_scale.laws.runs import Runs

EQUAL_COMPUTE = 0.05
"""Largest step of log compute, in order, between runs of one budget."""


class Valley(NamedTuple):
    """The lowest point of the parabola through the runs of one budget."""

    compute: float
    """FLOPs, geometric mean of the runs."""
    parameters: float
    tokens: float
    loss: float
    runs: int


class IsoFlops(NamedTuple):
    """Approach 2. It is biased where the sizes lie off the optimum or far apart: a loss is no parabola in log N."""

    valleys: list[Valley]
    rejected: list[str]
    """Budgets that give no optimum, with the reason."""
    sizes: PowerLaw
    """Optimal parameters over compute, exponent ``C``."""
    tokens: PowerLaw
    """Optimal tokens over compute, exponent ``C``."""


def isoflops(runs: Runs, level: float = 0.95) -> IsoFlops:
    """Fit a parabola in log N to the losses of each budget, then power laws to their lowest points.

    Args:
        runs: runs of several budgets.
        level: coverage of the intervals of the power laws.

    Raises:
        DataError: fewer than two budgets with an optimum.
    """
    order = np.argsort(runs.flops(), kind="stable")
    compute = np.log(runs.flops()[order])
    breaks = np.flatnonzero(np.diff(compute) > EQUAL_COMPUTE) + 1
    valleys, rejected = [], []
    for rows in np.split(order, breaks):
        found = _valley(runs.take(rows))
        if isinstance(found, str):
            rejected.append(found)
        else:
            valleys.append(found)
    if len(valleys) < 2:
        raise DataError(
            f"{len(valleys)} of {len(valleys) + len(rejected)} compute budgets have an optimum inside their sizes; "
            f"two are needed. {'; '.join(rejected)}"
        )
    factor = {"C": [valley.compute for valley in valleys]}
    sizes = fit_power_law([valley.parameters for valley in valleys], factor, level)
    return IsoFlops(valleys, rejected, sizes, fit_power_law([valley.tokens for valley in valleys], factor, level))


def _valley(runs: Runs) -> Valley | str:
    compute = float(np.exp(np.mean(np.log(runs.flops()))))
    budget = f"budget of {compute:.3g} FLOPs"
    sizes = np.log(runs.N)
    if len(np.unique(sizes)) < 3:
        return f"{budget}: {len(np.unique(sizes))} sizes, a parabola needs 3"
    centre = float(np.mean(sizes))
    curvature, slope, level = np.polyfit(sizes - centre, runs.loss, 2)
    if curvature <= 0.0:
        return f"{budget}: the losses have no minimum over size"
    lowest = -slope / (2.0 * curvature)
    if not sizes.min() < centre + lowest < sizes.max():
        return f"{budget}: the optimum lies outside the sizes {runs.N.min():.3g} to {runs.N.max():.3g}"
    parameters = float(np.exp(centre + lowest))
    tokens = compute / (FLOPS_PER_PARAMETER_AND_TOKEN * parameters)
    return Valley(compute, parameters, tokens, float(level + slope * lowest / 2.0), len(runs.loss))
