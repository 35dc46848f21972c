"""What a fit minimises: the sum of Huber losses of the residuals of log loss (Hoffmann et al., approach 3).

The sum, not the mean: a mean over hundreds of runs is so small that an optimiser's default tolerance ends it early,
which is how the published Chinchilla constants came to be off.
"""

import numpy as np

from card_scale.laws.forms import Form
from card_scale.laws.formulas import Array
from card_scale.laws.runs import Runs

DELTA = 1e-3
"""Residual of log loss at which the Huber loss turns from quadratic to linear."""


def huber(residuals: Array) -> Array:
    """Return r^2 / 2 where |r| <= DELTA, DELTA (|r| - DELTA / 2) elsewhere."""
    size = np.abs(residuals)
    return np.where(size <= DELTA, 0.5 * size**2, DELTA * (size - 0.5 * DELTA))


def influence(residuals: Array) -> Array:
    """Return the derivative of :func:`huber`."""
    return np.clip(residuals, -DELTA, DELTA)


def constants_at(form: Form, logs: Array) -> dict[str, Array]:
    """Return the constants [..., 1] of logarithms [..., len(form.constants)], ready to broadcast against runs."""
    values = np.exp(logs)
    return {name: values[..., index : index + 1] for index, name in enumerate(form.constants)}


def residuals(form: Form, logs: Array, runs: Runs) -> Array:
    """Return log predicted loss minus log measured loss [..., n]."""
    return np.log(form.law(constants_at(form, logs), runs)) - np.log(runs.loss)


def jacobian(form: Form, logs: Array, runs: Runs, free: np.ndarray) -> Array:
    """Return the derivative [..., n, len(free)] of the residuals by the logarithms of the constants at ``free``."""
    params = constants_at(form, logs)
    slopes = form.slopes(params, runs)
    loss = form.law(params, runs)
    return np.stack([slopes[form.constants[index]] / loss for index in free], axis=-1)


def objective(form: Form, logs: Array, runs: Runs) -> Array:
    """Return the sum over the runs of the Huber losses [...]."""
    return huber(residuals(form, logs, runs)).sum(axis=-1)


def r_squared(form: Form, logs: Array, runs: Runs) -> float:
    """Return the share of the variance of the plain losses that constants [len(form.constants)] explain."""
    error = form.law(constants_at(form, logs), runs) - runs.loss
    return float(1.0 - np.sum(error**2) / np.sum((runs.loss - runs.loss.mean()) ** 2))
