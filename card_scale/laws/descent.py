"""Two minimisers of the same objective: L-BFGS-B for one fit, damped Gauss-Newton steps for thousands at once."""

import numpy as np
from scipy.optimize import minimize

from card_scale.laws.forms import Form
from card_scale.laws.formulas import Array
from card_scale.laws.huber import DELTA, huber, influence, jacobian, residuals
from card_scale.laws.runs import Runs

CHUNK = 400_000
"""Residuals held at once: bounds the memory, and keeps the arrays in cache."""

LARGEST_STEP = 2.0
"""Largest change of a logarithm in one step."""

SETTLED = 1e-9
"""Relative decrease of the objective below which a step counts as none."""


def free_indices(form: Form, fixed: tuple[str, ...]) -> np.ndarray:
    """Return the places in ``form.constants`` of those that are not ``fixed``."""
    return np.array([index for index, name in enumerate(form.constants) if name not in fixed], dtype=np.int64)


def descend(form: Form, logs: Array, runs: Runs, free: np.ndarray) -> tuple[Array, float]:
    """Minimise from one start with L-BFGS-B.

    Args:
        form: the law.
        logs: logarithms of all its constants [p].
        runs: what to fit.
        free: places of the constants that move; they stay within the form's bounds.

    Returns:
        The logarithms [p] of the minimum and the objective there.
    """
    names = tuple(form.constants[index] for index in free)
    start = np.array(logs)
    if not len(free):
        return start, float(huber(residuals(form, start, runs)).sum())

    def value_and_gradient(moved: Array) -> tuple[float, Array]:
        start[free] = moved
        error = residuals(form, start, runs)
        gradient = influence(error) @ jacobian(form, start, runs, free)
        # L-BFGS-B's stopping rules are absolute near zero; in units of DELTA^2 an exact fit is followed to the end.
        return float(huber(error).sum()) / DELTA**2, gradient / DELTA**2

    bounds = list(zip(form.lower(names), form.upper(names), strict=True))
    options = {"maxiter": 2000, "maxfun": 5000, "maxcor": 20, "ftol": 1e-15, "gtol": 1e-10}
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        first = np.clip(start[free], form.lower(names), form.upper(names))
        found = minimize(value_and_gradient, first, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    start[free] = found.x
    return start, float(found.fun) * DELTA**2


def descend_all(
    form: Form, logs: Array, runs: Runs, free: np.ndarray, weights: Array | None = None, steps: int = 200
) -> tuple[Array, Array]:
    """Minimise from many starts, each with its own weights of the runs, as one array computation.

    Each step solves the damped normal equations of least squares with the weights min(1, DELTA / |r|), whose parabola
    lies above the Huber loss and touches it, so steps that descend exist until a minimum is reached.

    Args:
        form: the law.
        logs: logarithms of all constants [k, p].
        runs: what to fit, n of them.
        free: places of the constants that move; they stay within the form's bounds.
        weights: how often each run counts [k, n]; default: once.
        steps: most steps taken.

    Returns:
        The logarithms [k, p] and the weighted objectives [k].
    """
    size = max(1, CHUNK // (len(runs.loss) * max(len(free), 1)))
    # A trial far out may overflow; it is then not finite, and no step is taken to it.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        parts = [
            _descend_chunk(
                form, logs[at : at + size], runs, free, None if weights is None else weights[at : at + size], steps
            )
            for at in range(0, len(logs), size)
        ]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _descend_chunk(
    form: Form, logs: Array, runs: Runs, free: np.ndarray, weights: Array | None, steps: int
) -> tuple[Array, Array]:
    names = tuple(form.constants[index] for index in free)
    low, high = form.lower(names), form.upper(names)
    logs = np.array(logs)
    logs[:, free] = np.clip(logs[:, free], low, high)
    counts = np.ones((len(logs), len(runs.loss))) if weights is None else weights
    error = residuals(form, logs, runs)
    value = (counts * huber(error)).sum(axis=-1)
    damping = np.full(len(logs), 1e-3)
    still = np.zeros(len(logs), dtype=np.int64)
    active = np.arange(len(logs) if len(free) else 0)
    for _ in range(steps):
        if not len(active):
            break
        at, count = logs[active], counts[active]
        step = _step(form, at, runs, free, error[active], count, damping[active], low, high)
        trial = at.copy()
        trial[:, free] = np.clip(at[:, free] + step, low, high)
        trial_error = residuals(form, trial, runs)
        trial_value = (count * huber(trial_error)).sum(axis=-1)
        # A trial that is not finite is no improvement.
        better = trial_value < value[active]
        gain = np.where(better, value[active] - trial_value, 0.0)
        settled = gain <= SETTLED * value[active]
        took = active[better]
        logs[took], error[took], value[took] = trial[better], trial_error[better], trial_value[better]
        damping[active] = np.clip(np.where(better, damping[active] * 0.2, damping[active] * 8.0), 1e-12, 1e12)
        still[active] = np.where(settled, still[active] + 1, 0)
        # A rejected step is tried again shorter; several without gain are the end.
        active = active[still[active] < 6]
    return logs, value


def _step(
    form: Form,
    logs: Array,
    runs: Runs,
    free: np.ndarray,
    error: Array,
    counts: Array,
    damping: Array,
    low: Array,
    high: Array,
) -> Array:
    """Return the damped Gauss-Newton step [k, f] of the free constants, those held by a bound left out."""
    slope = jacobian(form, logs, runs, free)
    weight = counts * np.minimum(1.0, DELTA / np.maximum(np.abs(error), 1e-300))
    weighted = slope * weight[..., None]
    gradient = np.einsum("knf,kn->kf", weighted, error)
    normal = np.swapaxes(weighted, -1, -2) @ slope
    at = logs[:, free]
    held = ((at <= low) & (gradient > 0.0)) | ((at >= high) & (gradient < 0.0))
    keep = ~held
    normal = normal * (keep[:, :, None] & keep[:, None, :])
    diagonal = np.einsum("kff->kf", normal)
    floor = 1e-12 * diagonal.max(axis=-1, keepdims=True) + 1e-300
    scaled = np.where(held, 1.0, damping[:, None] * diagonal + floor)
    normal = normal + scaled[:, :, None] * np.eye(len(free))
    step = np.linalg.solve(normal, np.where(held, 0.0, -gradient)[..., None])[..., 0]
    return np.clip(step, -LARGEST_STEP, LARGEST_STEP)
