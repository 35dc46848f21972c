"""Whether a grid of runs would identify R_D, and whether the intervals cover: fits of simulated runs."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from card_scale.errors import ConfigurationError
from card_scale.laws import formulas as laws
from card_scale.laws.dependence import dependence
from card_scale.laws.fit import fit
from card_scale.laws.forms import DATA_CONSTRAINED
from card_scale.laws.huber import residuals
from card_scale.laws.profile import profile
from card_scale.laws.published import CONSTANTS, MUENNIGHOFF_REPETITION
from card_scale.laws.runs import Runs
from card_scale.laws.verdict import Verdict, judge

STARTS = 24


class Grid(NamedTuple):
    """Sizes times unique tokens times epochs 1, 2, 4, ... up to the most, which is included."""

    sizes: tuple[float, ...] = (3e7, 1e8, 3e8, 1e9)
    unique: tuple[float, ...] = (1e8, 4e8)
    most_epochs: int = 64

    def runs(self) -> Runs:
        """Return the runs of the grid, their losses still NaN."""
        epochs = [2.0**power for power in range(self.most_epochs.bit_length()) if 2**power <= self.most_epochs]
        if epochs[-1] < self.most_epochs:
            epochs.append(float(self.most_epochs))
        cells = [(size, held * times, held) for size in self.sizes for held in self.unique for times in epochs]
        size, tokens, held = np.array(cells).T
        return Runs(size, tokens, held, np.full(len(cells), np.nan))


class Coverage(NamedTuple):
    """What the fits of simulated runs say about R_D. Shares are of the repetitions."""

    true_value: float
    most_epochs: int
    fitted: tuple[str, ...]
    noise: float
    repetitions: int
    covered: float
    """Share of the intervals that hold the true value."""
    too_high: float
    """Share that lie above it."""
    unbounded: float
    """Share with no upper end."""
    verdicts: dict[str, float]
    """Share of each verdict."""
    patterns: float
    """Share in which errors that are independent are called a pattern."""
    estimates: tuple[float, float, float]
    """10, 50 and 90 % of the estimates."""


def coverage(
    true_value: float, grid: Grid, fitted: Sequence[str], noise: float, repetitions: int, seed: int, level: float = 0.95
) -> Coverage:
    """Simulate runs of Muennighoff's law, fit them, and count.

    Args:
        true_value: R_D; the other constants are the published ones.
        grid: the runs.
        fitted: constants that are fitted, R_D among them; the others are given.
        noise: standard deviation of log loss.
        repetitions: of the simulation.
        seed: of the noise.
        level: nominal coverage.

    Raises:
        ConfigurationError: R_D is not fitted.
    """
    if "R_D" not in fitted:
        raise ConfigurationError(f"R_D must be fitted to say how well it is; fitted: {', '.join(fitted)}")
    truth = {**CONSTANTS["muennighoff-c4"], **MUENNIGHOFF_REPETITION, "R_D": true_value}
    given = {name: value for name, value in truth.items() if name not in fitted}
    runs = grid.runs()
    clean = laws.data_constrained(truth, runs.N, runs.D, runs.U)
    draws = np.random.default_rng(seed)
    found, patterns = [], []
    for repetition in range(repetitions):
        noisy = runs._replace(loss=clean * np.exp(noise * draws.standard_normal(len(clean))))
        one = fit(DATA_CONSTRAINED, noisy, given, STARTS, repetition)
        curve = profile(one, "R_D", level)
        pattern = dependence(noisy, residuals(DATA_CONSTRAINED, one.best.logs, noisy))
        patterns.append(pattern.found)
        kind, estimate = DATA_CONSTRAINED.kinds["R_D"], one.constants()["R_D"]
        found.append(judge("R_D", kind, estimate, (curve.low, curve.high), None, pattern))
    lows, highs = np.array([one.low for one in found]), np.array([one.high for one in found])
    ordered = np.sort([one.estimate for one in found])
    tenth = repetitions // 10
    return Coverage(
        true_value=true_value,
        most_epochs=grid.most_epochs,
        fitted=tuple(fitted),
        noise=noise,
        repetitions=repetitions,
        covered=float(np.mean((lows <= true_value) & (true_value <= highs))),
        too_high=float(np.mean(lows > true_value)),
        unbounded=float(np.mean(np.isinf(highs))),
        verdicts={str(kind): float(np.mean([one.verdict is kind for one in found])) for kind in Verdict},
        patterns=float(np.mean(patterns)),
        estimates=(float(ordered[tenth]), float(ordered[repetitions // 2]), float(ordered[-1 - tenth])),
    )
