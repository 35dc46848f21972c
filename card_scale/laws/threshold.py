"""How far above its minimum the objective may be before a constant's value is rejected."""

import numpy as np
from scipy.special import fdtri

from card_scale.laws.formulas import Array
from card_scale.laws.huber import DELTA, influence


def rise(residuals: Array, free: int, level: float) -> float:
    """Return the rise of the objective that bounds the profile-likelihood interval of one constant.

    For an M-estimator with independent errors of one size, twice the rise at the true value, divided by
    E psi^2 / E psi', is asymptotically chi-squared with one degree of freedom (Ronchetti 1982; psi is the Huber loss's
    derivative, psi' that of its expectation under a shift). With Gaussian errors below DELTA this is the likelihood
    ratio; with larger ones, for which the Huber loss is an absolute value, it is the test of median regression. The F
    distribution and n - p in place of n account for the constants fitted.

    Args:
        residuals: of log loss at the minimum [n], n > free.
        free: constants fitted.
        level: coverage, e.g. 0.95.
    """
    left = len(residuals) - free
    power = float(np.sum(influence(residuals) ** 2)) / left
    quantile = float(fdtri(1, left, level))
    slope = shift_slope(residuals, free)
    # No residual within a bandwidth of 0: the law passes by the runs, and their noise rejects nothing.
    return 0.5 * quantile * power / slope if slope > 0.0 else np.inf


def shift_slope(residuals: Array, free: int) -> float:
    """Return E psi', the slope of the mean influence under a shift of all residuals, by a central difference.

    Its step is Silverman's bandwidth: the derivative itself counts the residuals within DELTA of 0, too few of them
    when errors are large. The residuals are first freed of what fitting ``free`` constants did to them: it shrinks all,
    and takes as many, the smallest, to nearly 0 where the Huber loss is an absolute value.
    """
    count = len(residuals)
    grown = residuals * np.sqrt(count / (count - free))
    beyond = grown[np.argsort(np.abs(grown))[free:]]
    low, high = np.quantile(grown, [0.25, 0.75])
    spread = min(float(np.std(grown)), float(high - low) / 1.349) or float(np.std(grown))
    step = max(DELTA, 1.06 * spread * count ** (-1.0 / 5.0))
    return float(np.mean(influence(beyond + step) - influence(beyond - step))) / (2.0 * step)
