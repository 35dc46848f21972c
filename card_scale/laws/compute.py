"""What a training run costs, as scaling laws count it. Needs no scipy: tables of runs are read without fitting any."""

import numpy as np
import numpy.typing as npt

from card_scale.laws.formulas import Array

FLOPS_PER_PARAMETER_AND_TOKEN = 6.0
"""Two for a multiplication and its addition, once in the forward and twice in the backward pass."""


def flops(N: npt.ArrayLike, D: npt.ArrayLike) -> Array:  # noqa: N803
    """Return 6 N D, the usual count of a training run's floating-point operations."""
    return FLOPS_PER_PARAMETER_AND_TOKEN * np.asarray(N, np.float64) * np.asarray(D, np.float64)
