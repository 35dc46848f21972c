"""The number of epochs at which the validation loss turns, and its power law in unique tokens and size."""

from typing import NamedTuple

import numpy as np

from card_scale.errors import DataError
from card_scale.laws.power_law import PowerLaw, fit_power_law
from card_scale.laws.runs import Runs


class Optimum(NamedTuple):
    """Epochs of lowest loss for one size and one number of unique tokens."""

    parameters: float
    unique: float
    epochs: float
    """Where the parabola in log epochs through the lowest loss and its neighbours is lowest."""
    loss: float
    """Lowest measured loss, mean over runs that differ in the seed only."""
    low: float
    high: float
    """Epochs of the neighbours, between which the optimum lies; ``high`` is infinite if the last one was best and 0 is
    ``low`` if the first was: then ``epochs`` is only a bound."""

    @property
    def inside(self) -> bool:
        """Whether the loss was seen to fall and to rise again."""
        return self.low > 0.0 and self.high < np.inf


def optima(runs: Runs) -> list[Optimum]:
    """Return the optimum of every size and number of unique tokens that was trained for three or more epoch counts."""
    found = []
    for size, unique in np.unique(np.stack([runs.N, runs.U], axis=1), axis=0):
        ladder = runs.take((size == runs.N) & (unique == runs.U))
        tokens = np.unique(ladder.D)
        if len(tokens) < 3:
            continue
        losses = np.array([ladder.loss[count == ladder.D].mean() for count in tokens])
        epochs = tokens / unique
        best = int(losses.argmin())
        low = float(epochs[best - 1]) if best > 0 else 0.0
        high = float(epochs[best + 1]) if best < len(epochs) - 1 else np.inf
        at = float(epochs[best])
        if low > 0.0 and high < np.inf:
            at = _turn(np.log(epochs[best - 1 : best + 2]), losses[best - 1 : best + 2])
        found.append(Optimum(float(size), float(unique), at, float(losses[best]), low, high))
    return found


def optimal_epochs_law(found: list[Optimum], level: float = 0.95) -> PowerLaw:
    """Fit e_opt = k U^a N^b to the optima that lie inside their ladders, exponents ``U`` and ``N``.

    A factor that is the same in all of them is left out of the law, whose k then holds for that value only.

    Args:
        found: optima of all ladders.
        level: coverage of the intervals.

    Raises:
        DataError: too few of them, or U and N vary only together.
    """
    inside = [optimum for optimum in found if optimum.inside]
    factors = {"U": [optimum.unique for optimum in inside], "N": [optimum.parameters for optimum in inside]}
    varying = {name: values for name, values in factors.items() if len(set(values)) > 1}
    if not varying:
        raise DataError(f"{len(inside)} of {len(found)} ladders show the turn, a law needs at least 2")
    return fit_power_law([optimum.epochs for optimum in inside], varying, level)


def _turn(logs: np.ndarray, losses: np.ndarray) -> float:
    """Return the epochs at the lowest point of the parabola through three points of which the middle is lowest."""
    curvature, slope, _ = np.polyfit(logs - logs[1], losses, 2)
    # Three equal losses have no curvature.
    return float(np.exp(logs[1] - slope / (2.0 * curvature) if curvature > 0.0 else logs[1]))
