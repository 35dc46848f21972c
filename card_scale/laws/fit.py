"""A fit from many starts: the best minimum and the others that it was not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from card_scale.errors import ConfigurationError, DataError
from card_scale.laws.descent import descend, descend_all, free_indices
from card_scale.laws.forms import Form
from card_scale.laws.formulas import Array
from card_scale.laws.huber import DELTA, objective, r_squared
from card_scale.laws.runs import Runs
from card_scale.laws.starts import random_starts

MOST_MODES = 8
"""Distinct minima that are kept, the best first."""

SAME_MINIMUM = 0.02
"""Largest difference of a logarithm between two ends of descents that count as one minimum."""

TIED = 1e-6
"""Or largest relative difference of their objectives: equal ones are places in one flat valley, which may be curved."""

PATH_POINTS = 33
"""Points looked at between two ends of descents: they are one minimum if the objective does not rise between them."""


@dataclass(frozen=True)
class Mode:
    """A local minimum of the objective."""

    logs: Array
    """Logarithms of all constants [p]."""
    objective: float


@dataclass(frozen=True)
class Fit:
    """A form fitted to runs."""

    form: Form
    runs: Runs
    fixed: Mapping[str, float]
    """Constants that were given."""
    modes: Sequence[Mode]
    """Distinct local minima found, the lowest first."""

    @property
    def best(self) -> Mode:
        """The lowest minimum."""
        return self.modes[0]

    @property
    def free(self) -> tuple[str, ...]:
        """Names of the constants that were fitted."""
        return tuple(name for name in self.form.constants if name not in self.fixed)

    def constants(self, mode: Mode | None = None) -> dict[str, float]:
        """Return the constants of a minimum (default: the best) by name, 0 or infinity where a bound stands for it."""
        logs = (mode or self.best).logs
        return {name: self.value(name, float(logs[index])) for index, name in enumerate(self.form.constants)}

    def value(self, name: str, log: float) -> float:
        """Return a constant from its logarithm, 0 or infinity at the bound that stands for it."""
        if name not in self.fixed:
            low, high = np.log(self.form.bounds[name])
            if log <= low + SAME_MINIMUM:
                return 0.0
            if log >= high - SAME_MINIMUM:
                return float("inf")
        return float(np.exp(log))

    def r_squared(self) -> float:
        """Return the share of the variance of the losses that the best minimum explains."""
        return r_squared(self.form, self.best.logs, self.runs)


def check_given(form: Form, fixed: Mapping[str, float], runs: int) -> None:
    """Check the given constants and that enough runs are left to fit the others.

    Raises:
        ConfigurationError: an unknown or negative constant, or one missing that the form cannot fit.
        DataError: not more runs than free constants.
    """
    for name, value in fixed.items():
        if name not in form.constants:
            raise ConfigurationError(f"{name} is no constant of {form.name}; it has {', '.join(form.constants)}")
        if not value >= 0.0:
            raise ConfigurationError(f"{name} = {value} is given; constants are positive")
    for name in form.given:
        if name not in fixed:
            raise ConfigurationError(f"the form {form.name} needs {name} given, e.g. L0 = log of the vocabulary's size")
    free = len(form.constants) - len(fixed)
    if free and runs <= free:
        raise DataError(f"{runs} runs cannot determine the {free} free constants of {form.name}; more runs are needed")


def fit(form: Form, runs: Runs, fixed: Mapping[str, float], starts: int = 64, seed: int = 0) -> Fit:
    """Fit a form: random starts, all of them descended together, the distinct ends polished by L-BFGS-B.

    Args:
        form: the law.
        runs: what to fit.
        fixed: constants with a given value.
        starts: number of starts.
        seed: of the starts.

    Raises:
        ConfigurationError, DataError: see :func:`check_given`.
    """
    check_given(form, fixed, len(runs.loss))
    return fit_from(form, runs, fixed, random_starts(form, runs, fixed, starts, seed))


def fit_from(form: Form, runs: Runs, fixed: Mapping[str, float], starts: Array) -> Fit:
    """Return the fit whose descents begin at ``starts`` [k, p]."""
    free = free_indices(form, tuple(fixed))
    ends, objectives = descend_all(form, starts, runs, free)
    ended = [Mode(logs, float(value)) for logs, value in zip(ends, objectives, strict=True)]
    candidates = distinct(form, runs, ended, free)
    polished = [Mode(*descend(form, mode.logs, runs, free)) for mode in candidates]
    return Fit(form, runs, fixed, distinct(form, runs, polished, free))


def distinct(form: Form, runs: Runs, modes: Sequence[Mode], free: np.ndarray) -> list[Mode]:
    """Return at most MOST_MODES different minima, the lowest first; of equal ones the lowest."""
    kept: list[Mode] = []
    for mode in sorted(modes, key=lambda mode: mode.objective):
        if len(kept) == MOST_MODES:
            break
        if np.isfinite(mode.objective) and not any(_same(form, runs, mode, other, free) for other in kept):
            kept.append(mode)
    return kept


def _same(form: Form, runs: Runs, mode: Mode, lower: Mode, free: np.ndarray) -> bool:
    """Whether ``mode`` is ``lower`` again, or a place from which one gets there downhill along a straight line."""
    if np.max(np.abs(mode.logs[free] - lower.logs[free]), initial=0.0) <= SAME_MINIMUM:
        return True
    # An exact fit's objective is rounding, and tied with that of any other.
    if mode.objective - lower.objective <= TIED * max(lower.objective, DELTA**2 * TIED):
        return True
    path = np.tile(mode.logs, (PATH_POINTS, 1))
    path[:, free] = np.linspace(mode.logs[free], lower.logs[free], PATH_POINTS)
    return bool(np.max(objective(form, path, runs)) <= mode.objective * (1.0 + 1e-9))
