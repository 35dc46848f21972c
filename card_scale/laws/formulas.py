"""Scaling laws as pure float64 functions: the predicted loss of a run, in nats per token.

Arguments are arrays that broadcast: ``N`` parameters, ``D`` tokens processed, ``U`` unique tokens that there are, of
which a run of fewer tokens than that sees ``D``. Constants
come as a mapping from name to number (or to an array that broadcasts too), all positive. In :func:`data_constrained`
``R_D`` and ``R_N`` may also be 0 (a repeated token, or a parameter beyond the optimum, is worth nothing) and infinite
(it is worth as much as a new one).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Params = Mapping[str, Any]

# Between these a constant of decay is a number, beyond them its limit: x / R and R * (x / R) stay finite in float64.
NOTHING, EVERYTHING = 1e-150, 1e290

# log N_opt is kept between these, far beyond any model, where exponents near 0 would overflow it.
SMALLEST_LOG, LARGEST_LOG = -230.0, 690.0


def chinchilla(params: Params, N: npt.ArrayLike, D: npt.ArrayLike) -> Array:  # noqa: N803
    """Return L = E + A / N^alpha + B / D^beta (Hoffmann et al., arXiv 2203.15556).

    Args:
        params: A, B, E, alpha, beta.
    """
    return _additive(params, np.asarray(N, np.float64), np.asarray(D, np.float64), params["alpha"], params["beta"])


def optimal_parameters(params: Params, tokens: npt.ArrayLike) -> Array:
    """Return the number of parameters for which ``tokens`` is the compute-optimal amount of data.

    N_opt(U) = G (U G)^(beta/alpha) with G = (alpha A / (beta B))^(1/(alpha+beta)), which is
    (alpha A U^beta / (beta B))^(1/alpha).
    """
    alpha, beta = params["alpha"], params["beta"]
    scale = np.log(alpha) + np.log(params["A"]) - np.log(beta) - np.log(params["B"])
    optimum = (scale + beta * np.log(np.asarray(tokens, np.float64))) / alpha
    return np.exp(np.clip(optimum, SMALLEST_LOG, LARGEST_LOG))


def saturating(extra: npt.ArrayLike, constant: npt.ArrayLike) -> Array:
    """Return R (1 - exp(-x / R)): what ``extra`` x repetitions are worth, in units of the first use.

    Written with expm1: ``1 - exp`` loses all digits for R beyond 1e16 and turns the curve into steps, between which an
    optimiser finds minima that the law does not have.
    """
    decay = np.clip(np.asarray(constant, np.float64), NOTHING, EVERYTHING)
    return -decay * np.expm1(-np.asarray(extra, np.float64) / decay)


def geometric_sum(uses: npt.ArrayLike, delta: npt.ArrayLike) -> Array:
    """Return 1 + (1 - delta) + (1 - delta)^2 + ... of ``uses`` terms, continued to fractions: (1-(1-delta)^e)/delta.

    Args:
        uses: e, at least 1.
        delta: loss of value from one use to the next, in (0, 1].
    """
    share = np.asarray(delta, np.float64)
    # delta = 1 makes log1p infinite, which expm1 takes to its limit of -1.
    with np.errstate(divide="ignore"):
        return -np.expm1(np.asarray(uses, np.float64) * np.log1p(-share)) / share


def excess(params: Params, N: npt.ArrayLike, U: npt.ArrayLike) -> tuple[Array, Array]:  # noqa: N803
    """Return U_N = min(N, N_opt(U)), the parameters that U tokens can fill, and N / U_N, at least 1."""
    size = np.asarray(N, np.float64)
    filled = np.minimum(size, optimal_parameters(params, U))
    return filled, size / filled


def seen(D: npt.ArrayLike, U: npt.ArrayLike) -> Array:  # noqa: N803
    """Return min(U, D), the different tokens that a run sees."""
    return np.minimum(np.asarray(U, np.float64), np.asarray(D, np.float64))


def uses(D: npt.ArrayLike, U: npt.ArrayLike) -> Array:  # noqa: N803
    """Return the epochs D / U, at least 1."""
    return np.maximum(np.asarray(D, np.float64) / np.asarray(U, np.float64), 1.0)


def saturating_effective(params: Params, N: npt.ArrayLike, D: npt.ArrayLike, U: npt.ArrayLike) -> tuple[Array, Array]:  # noqa: N803
    """Return N' and D': the parameters and fresh tokens that a run's are worth when value saturates.

    D' = U + U R_D (1 - exp(-(D/U - 1) / R_D)), N' = U_N + U_N R_N (1 - exp(-(N/U_N - 1) / R_N)).
    """
    unique = seen(D, U)
    filled, ratio = excess(params, N, unique)
    data = unique * (1.0 + saturating(uses(D, unique) - 1.0, params["R_D"]))
    return filled * (1.0 + saturating(ratio - 1.0, params["R_N"])), data


def data_constrained(params: Params, N: npt.ArrayLike, D: npt.ArrayLike, U: npt.ArrayLike) -> Array:  # noqa: N803
    """Return the loss under repetition of Muennighoff et al., arXiv 2305.16264.

    L = E + A / N'^alpha + B / D'^beta, where repeated tokens and excess parameters lose their value exponentially, see
    :func:`saturating_effective`. R_N infinite: only data decays; R_D infinite: only parameters do; both infinite: the
    Chinchilla law.

    Args:
        params: A, B, E, alpha, beta, R_D, R_N.
    """
    return _additive(params, *saturating_effective(params, N, D, U), params["alpha"], params["beta"])


def geometric_effective(params: Params, N: npt.ArrayLike, D: npt.ArrayLike, U: npt.ArrayLike) -> tuple[Array, Array]:  # noqa: N803
    """Return N' and D' when the k-th use is worth (1 - delta)^(k-1) of the first, see :func:`geometric_sum`."""
    unique = seen(D, U)
    filled, ratio = excess(params, N, unique)
    data = unique * geometric_sum(uses(D, unique), params["delta_D"])
    return filled * geometric_sum(ratio, params["delta_N"]), data


def geometric_decay(params: Params, N: npt.ArrayLike, D: npt.ArrayLike, U: npt.ArrayLike) -> Array:  # noqa: N803
    """Return :func:`data_constrained` with the explicit sum instead of its limit; R = (1 - delta) / delta is close.

    Args:
        params: A, B, E, alpha, beta, delta_D, delta_N.
    """
    return _additive(params, *geometric_effective(params, N, D, U), params["alpha"], params["beta"])


def decayed_exponents(params: Params, N: npt.ArrayLike, D: npt.ArrayLike, U: npt.ArrayLike) -> tuple[Array, Array]:  # noqa: N803
    """Return alpha max(0, 1 - (N/U_N - 1) / R_N) and beta max(0, 1 - (D/U - 1) / R_D)."""
    _, ratio = excess(params, N, seen(D, U))
    alpha = params["alpha"] * np.maximum(1.0 - (ratio - 1.0) / params["R_N"], 0.0)
    return alpha, params["beta"] * np.maximum(1.0 - (uses(D, U) - 1.0) / params["R_D"], 0.0)


def decaying_exponents(params: Params, N: npt.ArrayLike, D: npt.ArrayLike, U: npt.ArrayLike) -> Array:  # noqa: N803
    """Return the form of Muennighoff et al. in which epochs and excess parameters can raise the loss.

    L = E + A / N^alpha' + B / D^beta' with the exponents of :func:`decayed_exponents` (their notebook, appendix).

    Args:
        params: A, B, E, alpha, beta, R_D, R_N.
    """
    size, tokens = np.asarray(N, np.float64), np.asarray(D, np.float64)
    return _additive(params, size, tokens, *decayed_exponents(params, N, D, U))


def practical(params: Params, N: npt.ArrayLike, D: npt.ArrayLike, U: npt.ArrayLike) -> Array:  # noqa: N803
    """Return the over-fitting form of Practical Scaling Laws, arXiv 2605.09189.

    L = E + (L0 - E) h / (1 + h), h = a / N^alpha + b / D^beta + c N^gamma / U^delta: too many parameters for the unique
    tokens raise the loss, which stays below L0, the loss of a model that knows nothing (log of the vocabulary).

    Args:
        params: E, a, alpha, b, beta, c, gamma, delta, L0.
    """
    h = handicap(params, N, D, U)
    return params["E"] + (params["L0"] - params["E"]) * h / (1.0 + h)


def handicap(params: Params, N: npt.ArrayLike, D: npt.ArrayLike, U: npt.ArrayLike) -> Array:  # noqa: N803
    """Return h of :func:`practical`: the sum of what too few parameters, steps and unique tokens cost."""
    size, tokens, unique = (np.log(np.asarray(values, np.float64)) for values in (N, D, seen(D, U)))
    too_small = params["a"] * np.exp(-params["alpha"] * size)
    too_short = params["b"] * np.exp(-params["beta"] * tokens)
    return too_small + too_short + params["c"] * np.exp(params["gamma"] * size - params["delta"] * unique)


def critical_compute(params: Params, U: npt.ArrayLike) -> Array:  # noqa: N803
    """Return k U^slope: training FLOPs beyond which the second objective beats the first on U unique tokens.

    Args:
        params: k, slope; published for masked diffusion against AR in Prabhudesai et al., arXiv 2507.15857.
    """
    return params["k"] * np.asarray(U, np.float64) ** params["slope"]


def optimal_epochs(params: Params, N: npt.ArrayLike, U: npt.ArrayLike) -> Array:  # noqa: N803
    """Return k U^by_U N^by_N: the epochs at which the validation loss turns (form of Quokka, arXiv 2510.03280).

    Args:
        params: k, by_U, by_N.
    """
    unique, size = np.asarray(U, np.float64), np.asarray(N, np.float64)
    return params["k"] * unique ** params["by_U"] * size ** params["by_N"]


def _additive(params: Params, size: Array, tokens: Array, alpha: Any, beta: Any) -> Array:
    by_parameters = params["A"] * np.exp(-alpha * np.log(size))
    by_data = params["B"] * np.exp(-beta * np.log(tokens))
    return params["E"] + by_parameters + by_data
