"""How to spend a compute budget C = 6 N D under a law, and how sure of that a fit is."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from card_scale.laws import formulas as laws
from card_scale.laws.analysis import Analysis
from card_scale.laws.compute import FLOPS_PER_PARAMETER_AND_TOKEN, flops
from card_scale.laws.forms import CHINCHILLA, DATA_CONSTRAINED
from card_scale.laws.formulas import Array, Params

ALLOCATES = (CHINCHILLA.name, DATA_CONSTRAINED.name)
"""Forms under which a budget has a best use."""

SEARCH_STEPS = 2000
"""Sizes tried before the best one is refined."""


class Allocation(NamedTuple):
    """The best use of a budget, and the loss it is predicted to reach (nats per token)."""

    parameters: float
    tokens: float
    loss: float


def compute_optimal(params: Params, budget: float) -> Allocation:
    """Return Chinchilla's optimum: N = G (C/6)^(beta/(alpha+beta)), D = (C/6)^(alpha/(alpha+beta)) / G.

    Args:
        params: A, B, E, alpha, beta.
        budget: C in FLOPs.
    """
    alpha, beta = params["alpha"], params["beta"]
    ratio = (alpha * params["A"] / (beta * params["B"])) ** (1.0 / (alpha + beta))
    product = budget / FLOPS_PER_PARAMETER_AND_TOKEN
    size, tokens = ratio * product ** (beta / (alpha + beta)), product ** (alpha / (alpha + beta)) / ratio
    return Allocation(float(size), float(tokens), float(laws.chinchilla(params, size, tokens)))


def data_constrained_optimal(params: Params, budget: float, unique: float) -> Allocation:
    """Return the optimum under :func:`laws.data_constrained` with at most ``unique`` different tokens.

    A budget too small to read them all reads a part of them once. The loss as a function of the size has a kink where
    the data begin to repeat, so sizes on a fine grid are compared first and the best one's surroundings searched.

    Args:
        params: A, B, E, alpha, beta, R_D, R_N.
        budget: C in FLOPs.
        unique: U.
    """
    product = budget / FLOPS_PER_PARAMETER_AND_TOKEN

    def loss(log_size: npt.ArrayLike) -> Array:
        size = np.exp(log_size)
        tokens = product / size
        return laws.data_constrained(params, size, tokens, np.minimum(unique, tokens))

    sizes = np.linspace(0.0, np.log(product), SEARCH_STEPS)
    best = int(np.clip(np.argmin(loss(sizes)), 1, SEARCH_STEPS - 2))
    found = minimize_scalar(loss, bounds=(sizes[best - 1], sizes[best + 1]), method="bounded", options={"xatol": 1e-9})
    return Allocation(float(np.exp(found.x)), float(product / np.exp(found.x)), float(found.fun))


class Interval(NamedTuple):
    """Central interval over resamples."""

    low: float
    high: float


class BudgetUse(NamedTuple):
    """The best use of a budget under a fitted law."""

    budget: float
    """C in FLOPs."""
    unique: float | None
    """U; None where no token is repeated."""
    best: Allocation
    """At the fit's lowest minimum."""
    intervals: tuple[Interval, Interval, Interval] | None
    """Of parameters, tokens and loss, over the resamples; None without any."""
    beyond: float
    """Times the most compute of a run that was fitted: above 1 the law is extrapolated."""

    @property
    def epochs(self) -> float:
        """How often the data are seen; 1 where only a part of them is."""
        return 1.0 if self.unique is None else max(1.0, self.best.tokens / self.unique)


def best_use(analysis: Analysis, budget: float, unique: float | None) -> BudgetUse:
    """Return the best use of a budget under a fitted law of ALLOCATES.

    Args:
        analysis: the fit.
        budget: C in FLOPs.
        unique: U, for the form in which data are repeated; else None.
    """
    fit, runs = analysis.fit, analysis.fit.runs

    def optimum(logs: Array) -> Allocation:
        # A bound of the search instead of the limit that it stands for: an exponent of 0 has no optimum.
        params = dict(zip(fit.form.constants, np.exp(logs), strict=True))
        return compute_optimal(params, budget) if unique is None else data_constrained_optimal(params, budget, unique)

    intervals = None
    if analysis.resamples is not None:
        drawn = np.array([optimum(logs) for logs in analysis.resamples])
        ends = (1.0 - analysis.settings.level) / 2.0, (1.0 + analysis.settings.level) / 2.0
        # Nearest: between a number and infinity, which extreme resamples give, there is no other.
        low, high = np.quantile(drawn, ends, axis=0, method="nearest").tolist()
        size, tokens, loss = (Interval(*both) for both in zip(low, high, strict=True))
        intervals = size, tokens, loss
    beyond = budget / float(flops(runs.N, runs.D).max())
    return BudgetUse(budget, unique, optimum(fit.best.logs), intervals, beyond)
