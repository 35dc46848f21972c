"""Products of powers, fitted by least squares in logarithms, with intervals."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from card_scale.errors import DataError
from card_scale.laws.formulas import Array


class Estimate(NamedTuple):
    """A constant with its interval; infinite ends if the points are as few as the constants."""

    value: float
    low: float
    high: float


class PowerLaw(NamedTuple):
    """y = k * product of x^exponent."""

    k: Estimate
    exponents: dict[str, Estimate]
    """By the factor's name."""

    def __call__(self, **factors: npt.ArrayLike) -> Array:
        """Return y at the factors' values."""
        logs = sum(self.exponents[name].value * np.log(values) for name, values in factors.items())
        return np.asarray(self.k.value * np.exp(logs), np.float64)


def fit_power_law(y: npt.ArrayLike, factors: Mapping[str, npt.ArrayLike], level: float = 0.95) -> PowerLaw:
    """Fit y = k * product of factor^exponent.

    Args:
        y: positive values [n].
        factors: positive values [n] by name.
        level: coverage of the intervals, for errors of log y that are independent, Gaussian and of one size.

    Raises:
        DataError: too few points, or factors that do not vary enough to tell the exponents apart.
    """
    target = np.log(np.asarray(y, np.float64))
    logs = [np.log(np.asarray(values, np.float64)) for values in factors.values()]
    # Centred, so that the rank does not depend on the unit the factors are counted in.
    centres = [float(column.sum()) / max(len(column), 1) for column in logs]
    columns = [column - centre for column, centre in zip(logs, centres, strict=True)]
    matrix = np.stack([np.ones_like(target), *columns], axis=1)
    if np.linalg.matrix_rank(matrix, tol=1e-6) < matrix.shape[1]:
        raise DataError(
            f"{len(target)} points do not determine the exponents of {', '.join(factors)}; "
            f"at least {matrix.shape[1]} points that differ in each of them are needed"
        )
    solution = np.linalg.lstsq(matrix, target, rcond=None)[0]
    reach = _reach(target - matrix @ solution, matrix.shape[1], level)
    inverse = np.linalg.inv(matrix.T @ matrix)
    # log k is the intercept moved back from the centres.
    shift = np.array([1.0, *(-centre for centre in centres)])
    log_k, spread = float(shift @ solution), float(np.sqrt(shift @ inverse @ shift)) * reach
    with np.errstate(over="ignore"):
        k = Estimate(float(np.exp(log_k)), float(np.exp(log_k - spread)), float(np.exp(log_k + spread)))
    exponents = {}
    for place, name in enumerate(factors, start=1):
        value, half = float(solution[place]), float(np.sqrt(inverse[place, place])) * reach
        exponents[name] = Estimate(value, value - half, value + half)
    return PowerLaw(k, exponents)


def with_bootstrap(law: PowerLaw, repeats: Sequence[PowerLaw], level: float) -> PowerLaw:
    """Return ``law`` with the central intervals of its constants over fits to resamples; no ends without any."""
    exponents = {
        name: _central(one.value, [again.exponents[name].value for again in repeats], level, -np.inf)
        for name, one in law.exponents.items()
    }
    return PowerLaw(_central(law.k.value, [again.k.value for again in repeats], level, 0.0), exponents)


def wider(one: PowerLaw, other: PowerLaw) -> PowerLaw:
    """Return ``one`` with the farther ends of the intervals of both."""
    exponents = {name: _farther(found, other.exponents[name]) for name, found in one.exponents.items()}
    return PowerLaw(_farther(one.k, other.k), exponents)


def _central(value: float, drawn: Sequence[float], level: float, least: float) -> Estimate:
    if not drawn:
        return Estimate(value, least, np.inf)
    low, high = np.quantile(drawn, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Estimate(value, float(low), float(high))


def _farther(one: Estimate, other: Estimate) -> Estimate:
    return Estimate(one.value, min(one.low, other.low), max(one.high, other.high))


def _reach(errors: Array, constants: int, level: float) -> float:
    """Return the standard deviation of the errors times Student's quantile; infinite if no point is to spare."""
    left = len(errors) - constants
    if not left:
        return np.inf
    return float(np.sqrt(errors @ errors / left) * stdtrit(left, 0.5 + level / 2.0))
