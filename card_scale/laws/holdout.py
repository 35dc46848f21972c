"""Extrapolation: the largest runs are left out of the fit and predicted by it."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from card_scale.errors import ConfigurationError, DataError
from card_scale.laws.fit import check_given, fit
from card_scale.laws.forms import Form
from card_scale.laws.formulas import Array
from card_scale.laws.huber import residuals
from card_scale.laws.runs import Runs


class HoldOut(NamedTuple):
    """How well a law that has not seen the largest runs predicts them. Errors are of log loss: 0.01 is 1 %."""

    rows: np.ndarray
    """Rows of the runs held out, int64 [k]."""
    asked: int
    """Runs that were to be held out; the rest of ``rows`` share a cell with one of them."""
    errors: Array
    """Log predicted minus log measured loss of those [k]."""
    inside: float
    """Root mean square error of the runs that were fitted."""
    outside: float
    """That of the runs held out."""
    bias: float
    """Mean error of the runs held out: above 0, the law promises too little."""
    largest_fitted: float
    """FLOPs of the largest run that was fitted."""


def hold_out(form: Form, runs: Runs, fixed: Mapping[str, float], count: int, starts: int, seed: int) -> HoldOut:
    """Fit without the ``count`` runs of the most compute and predict them.

    A cell (equal N, D and U; several seeds) is held out as a whole: a law that has seen one seed of it predicts the
    others without extrapolating.

    Args:
        form, fixed, starts, seed: as for :func:`card_scale.laws.fit.fit`.
        runs: all runs.
        count: runs to hold out at least.

    Raises:
        ConfigurationError: ``count`` is not positive, or see :func:`card_scale.laws.fit.check_given`.
        DataError: too few runs would be left to fit.
    """
    if count < 1:
        raise ConfigurationError(f"{count} runs to hold out; at least 1 can be")
    check_given(form, fixed, len(runs.loss))
    needed = len([name for name in form.constants if name not in fixed]) + 1
    held = _largest_cells(runs, count)
    if len(runs.loss) - held.sum() < needed:
        taken = [int(_largest_cells(runs, fewer).sum()) for fewer in range(1, min(count, len(runs.loss)))]
        valid = sum(len(runs.loss) - number >= needed for number in taken)
        raise DataError(
            f"{count} runs to hold out of {len(runs.loss)}, {held.sum()} with the whole of their cells; "
            f"{form.name} needs {needed} runs to be fitted: {f'from 1 to {valid}' if valid else 'none'} can be held out"
        )
    fitted = fit(form, runs.take(~held), fixed, starts, seed)
    inside = residuals(form, fitted.best.logs, runs.take(~held))
    errors = residuals(form, fitted.best.logs, runs.take(held))
    return HoldOut(
        rows=np.flatnonzero(held),
        asked=count,
        errors=errors,
        inside=float(np.sqrt(np.mean(inside**2))),
        outside=float(np.sqrt(np.mean(errors**2))),
        bias=float(np.mean(errors)),
        largest_fitted=float(runs.cost()[~held].max()),
    )


def _largest_cells(runs: Runs, count: int) -> np.ndarray:
    """Return which runs [n] are among the ``count`` of the most compute or share N, D and U with one that is."""
    cell = np.unique(np.stack([runs.N, runs.D, runs.U]), axis=1, return_inverse=True)[1].ravel()
    largest = np.argsort(runs.cost(), kind="stable")[-count:]
    return np.isin(cell, cell[largest])
