"""Chinchilla approach 3 by variable projection: E, A and B solved for, so that only two exponents are searched.

The five-constant problem has a condition number near 1e11; this one near 10 (Open-Athena, scaling-law-analysis). It
minimises squared relative errors of the loss instead of Huber losses of its logarithm, so outliers weigh more.
"""

import numpy as np
from scipy.optimize import least_squares

from card_scale.laws.fit import check_given
from card_scale.laws.forms import CHINCHILLA
from card_scale.laws.formulas import Array
from card_scale.laws.huber import constants_at
from card_scale.laws.runs import Runs
from card_scale.laws.starts import solve_linear

EXPONENTS = (0.1, 0.2, 0.35, 0.6, 1.0)
"""Starts for each exponent."""


def variable_projection(runs: Runs) -> dict[str, float]:
    """Return A, B, E, alpha and beta that minimise the sum of squared relative errors.

    Raises:
        DataError: not more runs than constants.
    """
    check_given(CHINCHILLA, {}, len(runs.loss))
    exponents = [CHINCHILLA.constants.index(name) for name in ("alpha", "beta")]

    def solved(logs: Array) -> Array:
        start = np.zeros(len(CHINCHILLA.constants))
        start[exponents] = logs
        return solve_linear(CHINCHILLA, start, runs, CHINCHILLA.linear)

    def errors(logs: Array) -> Array:
        return CHINCHILLA.law(constants_at(CHINCHILLA, solved(logs)), runs) / runs.loss - 1.0

    limits = (CHINCHILLA.lower(("alpha", "beta")), CHINCHILLA.upper(("alpha", "beta")))
    starts = [np.log([alpha, beta]) for alpha in EXPONENTS for beta in EXPONENTS]
    start = min(starts, key=lambda logs: float(np.sum(errors(logs) ** 2)))
    found = least_squares(errors, start, bounds=limits, xtol=1e-14, ftol=1e-14, gtol=1e-14)
    values = np.exp(solved(found.x))
    return {name: float(value) for name, value in zip(CHINCHILLA.constants, values, strict=True)}
