"""Whether what a law leaves unexplained is noise, or a pattern that the law misses."""

from typing import NamedTuple

import numpy as np
from scipy.special import bdtrc

from card_scale.laws.formulas import Array
from card_scale.laws.runs import Runs

EXACT = 1e-6
"""Spread of log-loss residuals below which they are rounding, not noise."""

SIGNIFICANT = 0.01
"""Probability under independence below which agreeing signs are called a pattern."""


class Dependence(NamedTuple):
    """The signs of the residuals of neighbouring runs: same parameters and unique tokens, next number of tokens."""

    pairs: int
    agreeing: int
    probability: float
    """Of at least so many agreements if the residuals were independent, each sign as likely as the other."""

    @property
    def found(self) -> bool:
        """Whether the law misses a pattern, so that errors of neighbours are not independent."""
        return self.probability < SIGNIFICANT


def ladders(runs: Runs) -> np.ndarray:
    """Return a number for each run [n], int64, equal where runs differ in the tokens processed (or the seed) only.

    Runs that repeat nothing form one ladder per size: their unique tokens change with the tokens.
    """
    unique = np.where(runs.D <= runs.U, 0.0, runs.U)
    # A ladder of repetition begins with its single epoch, if that unique count is repeated by another run.
    repeated = {(size, held) for size, held in zip(runs.N, unique, strict=True) if held > 0.0}
    first = np.array([(size, held) in repeated for size, held in zip(runs.N, runs.U, strict=True)], dtype=bool)
    unique = np.where(first, runs.U, unique)
    return np.unique(np.stack([runs.N, unique]), axis=1, return_inverse=True)[1].ravel().astype(np.int64)


def dependence(runs: Runs, residuals: Array) -> Dependence:
    """Return how often neighbours on a ladder err to the same side.

    Independent symmetric errors agree in sign with probability 1/2, each pair independently of the next, however
    their sizes differ, so the count is binomial. Fitting makes errors alternate rather than agree.

    Args:
        runs: the runs [n].
        residuals: of log loss [n].
    """
    if np.std(residuals) < EXACT:
        return Dependence(0, 0, 1.0)
    ladder = ladders(runs)
    order = np.lexsort((runs.D, ladder))
    signs = np.sign(residuals[order])
    together = ladder[order][1:] == ladder[order][:-1]
    pairs = int(together.sum())
    agreeing = int(np.sum((signs[1:] * signs[:-1] > 0.0) & together))
    return Dependence(pairs, agreeing, float(bdtrc(agreeing - 1, pairs, 0.5)) if pairs else 1.0)
