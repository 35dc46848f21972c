"""Extrapolation: the largest runs are left out of the fit and predicted by it."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from card_scale.errors import ConfigurationError
from card_scale.scaling.fit import fit
from card_scale.scaling.forms import Form
from card_scale.scaling.laws import Array
from card_scale.scaling.objective import residuals
from card_scale.scaling.runs import Runs


class HoldOut(NamedTuple):
    """How well a law that has not seen the largest runs predicts them. Errors are of log loss: 0.01 is 1 %."""

    rows: np.ndarray
    """Rows of the runs held out, int64 [k]."""
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

    Args:
        form, fixed, starts, seed: as for :func:`card_scale.scaling.fit.fit`.
        runs: all runs.
        count: runs to hold out.

    Raises:
        ConfigurationError: no run would be left, or ``count`` is not positive.
        DataError: too few are left to fit.
    """
    if not 0 < count < len(runs.loss):
        raise ConfigurationError(f"{count} runs to hold out of {len(runs.loss)}; from 1 to {len(runs.loss) - 1} can be")
    order = np.argsort(runs.cost(), kind="stable")
    kept, held = order[:-count], order[-count:]
    fitted = fit(form, runs.take(kept), fixed, starts, seed)
    inside = residuals(form, fitted.best.logs, runs.take(kept))
    errors = residuals(form, fitted.best.logs, runs.take(held))
    return HoldOut(
        rows=held,
        errors=errors,
        inside=float(np.sqrt(np.mean(inside**2))),
        outside=float(np.sqrt(np.mean(errors**2))),
        bias=float(np.mean(errors)),
        largest_fitted=float(runs.cost()[kept].max()),
    )
