"""How to spend a compute budget C = 6 N D under a law."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from card_scale.laws import formulas as laws
from card_scale.laws.compute import FLOPS_PER_PARAMETER_AND_TOKEN
from card_scale.laws.formulas import Array, Params

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
