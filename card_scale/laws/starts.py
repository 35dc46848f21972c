"""Where fits start: random nonlinear constants, the linear ones solved for (variable projection)."""

from collections.abc import Mapping

import numpy as np
from scipy.optimize import lsq_linear

from card_scale.laws.forms import Form
from card_scale.laws.formulas import Array
from card_scale.laws.huber import constants_at
from card_scale.laws.runs import Runs

ROUNDS = 2
"""Solutions of the linear part for each start: U_N depends on A and B, so the first one moves it."""


def solve_linear(form: Form, logs: Array, runs: Runs, unknown: tuple[str, ...]) -> Array:
    """Return ``logs`` [p] with the linear constants ``unknown`` replaced by the weighted least-squares solution.

    They stay within the form's bounds. The errors weighted are, to first order, those of log loss.
    """
    if not unknown:
        return logs
    columns, target, weight = form.columns(constants_at(form, logs), runs)
    solved = [index for index, name in enumerate(form.linear) if name in unknown]
    known = [index for index, name in enumerate(form.linear) if name not in unknown]
    places = [form.constants.index(name) for name in form.linear]
    values = np.exp(logs[places])
    left = (target - columns[:, known] @ values[known]) * weight
    matrix = columns[:, solved] * weight[:, None]
    # Columns differ by many orders of magnitude: without scaling the small ones are lost in the solver's tolerance.
    scale = np.sqrt(np.sum(matrix**2, axis=0)) + 1e-300
    names = tuple(form.linear[index] for index in solved)
    low, high = np.exp(form.lower(names)), np.exp(form.upper(names))
    found = lsq_linear(matrix / scale, left, bounds=(low * scale, high * scale), method="bvls").x / scale
    result = np.array(logs)
    result[[places[index] for index in solved]] = np.log(np.clip(found, low, high))
    return result


def random_starts(form: Form, runs: Runs, fixed: Mapping[str, float], count: int, seed: int) -> Array:
    """Return ``count`` starts [count, p], the same for the same arguments.

    Args:
        form: the law.
        runs: what will be fitted.
        fixed: constants that keep a given value.
        count: starts.
        seed: of the draws.
    """
    draws = np.random.default_rng(seed)
    # Before they are solved for, A, B and E only decide where the parameters begin to be too many.
    first = {"A": 500.0, "B": 1500.0, "E": 0.5 * float(runs.loss.min()), "a": 1.0, "b": 1.0, "c": 1.0}
    unknown = tuple(name for name in form.linear if name not in fixed)
    starts = np.empty((count, len(form.constants)))
    for row in range(count):
        drawn = {name: draws.uniform(np.log(low), np.log(high)) for name, (low, high) in form.search.items()}
        for index, name in enumerate(form.constants):
            if name in fixed:
                starts[row, index] = log_of(fixed[name])
            elif name in drawn:
                starts[row, index] = drawn[name]
            else:
                starts[row, index] = np.log(first[name])
        for _ in range(ROUNDS):
            starts[row] = solve_linear(form, starts[row], runs, unknown)
    return starts


def log_of(value: float) -> float:
    """Return the logarithm, minus infinity for 0."""
    return float(np.log(value)) if value > 0.0 else -np.inf
