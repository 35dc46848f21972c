"""The laws as forms to fit: names, bounds, slopes by the logarithm of each constant, and the linear part.

Every constant of every form is positive and is searched by its logarithm, so a relative error means the same for all.
A bound beyond which a constant changes the law by less than any measurement stands for its limit, 0 or infinity.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from card_scale.laws import formulas as laws
from card_scale.laws.formulas import Array, Params
from card_scale.laws.runs import Runs
from card_scale.laws.verdict import Kind

Slopes = dict[str, Array]
Columns = tuple[Array, Array, Array]
"""[n, m] columns, [n] target, [n] weight of each row's error to make it an error of log loss."""


@dataclass(frozen=True)
class Form:
    """A law to fit."""

    name: str
    constants: tuple[str, ...]
    law: Callable[[Params, Runs], Array]
    """Loss of the runs; constants [..., 1] and runs [n] give [..., n]."""
    slopes: Callable[[Params, Runs], Slopes]
    """Derivative of the loss by the logarithm of each constant, shapes as ``law``."""
    kinds: Mapping[str, Kind]
    """What each constant that may be fitted is, for its verdict."""
    bounds: Mapping[str, tuple[float, float]]
    """Smallest and largest value of each constant."""
    search: Mapping[str, tuple[float, float]]
    """Where random starts are drawn, log-uniformly, for the constants that are not linear."""
    linear: tuple[str, ...]
    """Constants in which the law is linear once the others are given, in the order of ``columns``."""
    columns: Callable[[Params, Runs], Columns]
    """The linear problem for given other constants: columns @ linear constants = target."""
    given: tuple[str, ...] = field(default=())
    """Constants that are never fitted."""

    def lower(self, names: tuple[str, ...]) -> Array:
        """Return the logarithms of the smallest values [len(names)]."""
        return np.log([self.bounds[name][0] for name in names])

    def upper(self, names: tuple[str, ...]) -> Array:
        """Return the logarithms of the largest values [len(names)]."""
        return np.log([self.bounds[name][1] for name in names])


EXPONENT = (1e-3, 10.0)
AMPLITUDE = (1e-6, 1e18)
LOSS = (1e-6, 1e3)
DECAY = (1e-4, 1e9)
ADDITIVE_KINDS = {
    "A": Kind.AMPLITUDE,
    "B": Kind.AMPLITUDE,
    "E": Kind.LOSS,
    "alpha": Kind.EXPONENT,
    "beta": Kind.EXPONENT,
}
ADDITIVE_BOUNDS = {"A": AMPLITUDE, "B": AMPLITUDE, "E": LOSS, "alpha": EXPONENT, "beta": EXPONENT}
ADDITIVE_SEARCH = {"alpha": (0.1, 1.2), "beta": (0.1, 1.2)}
ADDITIVE = ("A", "B", "E", "alpha", "beta")


def _chinchilla_slopes(params: Params, runs: Runs) -> Slopes:
    size, tokens = np.log(runs.N), np.log(runs.D)
    return _power_slopes(params, size, tokens, params["alpha"], params["beta"])


def _power_slopes(params: Params, size: Array, tokens: Array, alpha: Array, beta: Array) -> Slopes:
    """Slopes of E + A exp(-alpha size) + B exp(-beta tokens), size and tokens being logarithms that stay."""
    by_size = params["A"] * np.exp(-alpha * size)
    by_tokens = params["B"] * np.exp(-beta * tokens)
    constant = np.broadcast_to(params["E"], by_size.shape)
    return {
        "A": by_size,
        "B": by_tokens,
        "E": constant,
        "alpha": -alpha * by_size * size,
        "beta": -beta * by_tokens * tokens,
    }


def _through_optimum(slopes: Slopes, by_filled: Array, params: Params, runs: Runs) -> None:
    """Add to ``slopes`` what A, B, alpha and beta do by moving U_N; ``by_filled`` is the slope by log U_N."""
    alpha, beta = params["alpha"], params["beta"]
    optimum = laws.optimal_parameters(params, runs.U)
    moved = np.where(optimum < runs.N, by_filled, 0.0) / alpha
    slopes["A"] = slopes["A"] + moved
    slopes["B"] = slopes["B"] - moved
    slopes["alpha"] = slopes["alpha"] + moved * (1.0 - alpha * np.log(optimum))
    slopes["beta"] = slopes["beta"] + moved * (beta * np.log(runs.U) - 1.0)


def _worth(extra: Array, constant: Array) -> tuple[Array, Array, Array]:
    """Return 1 + saturating(extra), its slope by ``extra`` and its slope by log ``constant``."""
    decay = np.clip(constant, laws.NOTHING, laws.EVERYTHING)
    worth = laws.saturating(extra, decay)
    marginal = np.exp(-extra / decay)
    return 1.0 + worth, marginal, worth - extra * marginal


def _series(count: Array, delta: Array) -> tuple[Array, Array, Array]:
    """Return geometric_sum(count), its slope by ``count`` and its slope by log ``delta``."""
    total = laws.geometric_sum(count, delta)
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = np.log1p(-delta)
        left = np.exp(count * rate)
        by_count = np.where(delta < 1.0, -rate * left / delta, 0.0)
        by_delta = np.where(delta < 1.0, count * left / (1.0 - delta), 0.0) - total
    return total, by_count, by_delta


def _repetition_slopes(
    names: tuple[str, str], offset: float, worth: Callable[[Array, Array], tuple[Array, Array, Array]]
) -> Callable[[Params, Runs], Slopes]:
    """Return the slopes of a law E + A / N'^alpha + B / D'^beta with N' = U_N * worth(N / U_N - offset), D' alike."""

    def slopes(params: Params, runs: Runs) -> Slopes:
        filled, ratio = laws.excess(params, runs.N, runs.U)
        size_worth, size_marginal, by_size_decay = worth(ratio - offset, params[names[1]])
        data_worth, _, by_data_decay = worth(laws.uses(runs.D, runs.U) - offset, params[names[0]])
        size, tokens = np.log(filled * size_worth), np.log(runs.U * data_worth)
        found = _power_slopes(params, size, tokens, params["alpha"], params["beta"])
        found[names[1]] = -params["alpha"] * found["A"] * by_size_decay / size_worth
        found[names[0]] = -params["beta"] * found["B"] * by_data_decay / data_worth
        # log N' = log U_N + log worth(N / U_N): moving U_N also moves the ratio.
        by_filled = -params["alpha"] * found["A"] * (1.0 - size_marginal * ratio / size_worth)
        _through_optimum(found, by_filled, params, runs)
        return found

    return slopes


def _exponent_slopes(params: Params, runs: Runs) -> Slopes:
    """Slopes of :func:`laws.decaying_exponents`."""
    _, ratio = laws.excess(params, runs.N, runs.U)
    more, repeats = (ratio - 1.0) / params["R_N"], (laws.uses(runs.D, runs.U) - 1.0) / params["R_D"]
    alpha = params["alpha"] * np.maximum(1.0 - more, 0.0)
    beta = params["beta"] * np.maximum(1.0 - repeats, 0.0)
    size, tokens = np.log(runs.N), np.log(runs.D)
    found = _power_slopes(params, size, tokens, alpha, beta)
    by_exponent = -found["A"] * size * params["alpha"] * (more < 1.0)
    found["R_N"] = by_exponent * more
    found["R_D"] = -found["B"] * tokens * params["beta"] * (repeats < 1.0) * repeats
    _through_optimum(found, by_exponent * ratio / params["R_N"], params, runs)
    return found


def _practical_slopes(params: Params, runs: Runs) -> Slopes:
    size, tokens, unique = np.log(runs.N), np.log(runs.D), np.log(runs.U)
    too_small = params["a"] * np.exp(-params["alpha"] * size)
    too_short = params["b"] * np.exp(-params["beta"] * tokens)
    too_large = params["c"] * np.exp(params["gamma"] * size - params["delta"] * unique)
    left = 1.0 / (1.0 + too_small + too_short + too_large)
    gain = (params["L0"] - params["E"]) * left**2
    return {
        "E": params["E"] * left,
        "a": gain * too_small,
        "alpha": -gain * too_small * params["alpha"] * size,
        "b": gain * too_short,
        "beta": -gain * too_short * params["beta"] * tokens,
        "c": gain * too_large,
        "gamma": gain * too_large * params["gamma"] * size,
        "delta": -gain * too_large * params["delta"] * unique,
    }


Powers = Callable[[Params, Runs], tuple[Array, Array]]


def _chinchilla_powers(params: Params, runs: Runs) -> tuple[Array, Array]:
    return params["alpha"] * np.log(runs.N), params["beta"] * np.log(runs.D)


def _saturating_powers(params: Params, runs: Runs) -> tuple[Array, Array]:
    size, tokens = laws.saturating_effective(params, runs.N, runs.D, runs.U)
    return params["alpha"] * np.log(size), params["beta"] * np.log(tokens)


def _geometric_powers(params: Params, runs: Runs) -> tuple[Array, Array]:
    size, tokens = laws.geometric_effective(params, runs.N, runs.D, runs.U)
    return params["alpha"] * np.log(size), params["beta"] * np.log(tokens)


def _exponent_powers(params: Params, runs: Runs) -> tuple[Array, Array]:
    alpha, beta = laws.decayed_exponents(params, runs.N, runs.D, runs.U)
    return alpha * np.log(runs.N), beta * np.log(runs.D)


def _additive_columns(powers: Powers) -> Callable[[Params, Runs], Columns]:
    """Return the linear problem of A, B and E; U_N stays that of the A and B it is called with."""

    def columns(params: Params, runs: Runs) -> Columns:
        size, tokens = powers(params, runs)
        stacked = np.stack([np.exp(-size), np.exp(-tokens), np.ones_like(runs.loss)], axis=-1)
        return stacked, runs.loss, 1.0 / runs.loss

    return columns


def _practical_columns(params: Params, runs: Runs) -> Columns:
    """The linear problem of a, b and c: h = (L - E) / (L0 - L). Rows outside E < L < L0 have weight 0."""
    inside = (runs.loss > params["E"]) & (runs.loss < params["L0"])
    target = np.where(inside, (runs.loss - params["E"]) / np.where(inside, params["L0"] - runs.loss, 1.0), 0.0)
    size, tokens, unique = np.log(runs.N), np.log(runs.D), np.log(runs.U)
    powers = [-params["alpha"] * size, -params["beta"] * tokens, params["gamma"] * size - params["delta"] * unique]
    weight = inside * (params["L0"] - params["E"]) / (1.0 + target) ** 2 / runs.loss
    return np.exp(np.stack(powers, axis=-1)), target, weight


CHINCHILLA = Form(
    name="chinchilla",
    constants=ADDITIVE,
    law=lambda params, runs: laws.chinchilla(params, runs.N, runs.D),
    slopes=_chinchilla_slopes,
    kinds=ADDITIVE_KINDS,
    bounds=ADDITIVE_BOUNDS,
    search=ADDITIVE_SEARCH,
    linear=("A", "B", "E"),
    columns=_additive_columns(_chinchilla_powers),
)

DATA_CONSTRAINED = Form(
    name="data-constrained",
    constants=(*ADDITIVE, "R_D", "R_N"),
    law=lambda params, runs: laws.data_constrained(params, runs.N, runs.D, runs.U),
    slopes=_repetition_slopes(("R_D", "R_N"), 1.0, _worth),
    kinds={**ADDITIVE_KINDS, "R_D": Kind.DECAY, "R_N": Kind.DECAY},
    bounds={**ADDITIVE_BOUNDS, "R_D": DECAY, "R_N": DECAY},
    search={**ADDITIVE_SEARCH, "R_D": (0.5, 5e3), "R_N": (0.1, 1e3)},
    linear=("A", "B", "E"),
    columns=_additive_columns(_saturating_powers),
)

GEOMETRIC = Form(
    name="geometric",
    constants=(*ADDITIVE, "delta_D", "delta_N"),
    law=lambda params, runs: laws.geometric_decay(params, runs.N, runs.D, runs.U),
    slopes=_repetition_slopes(("delta_D", "delta_N"), 0.0, _series),
    kinds={**ADDITIVE_KINDS, "delta_D": Kind.DECAY, "delta_N": Kind.DECAY},
    bounds={**ADDITIVE_BOUNDS, "delta_D": (1e-9, 1.0), "delta_N": (1e-9, 1.0)},
    search={**ADDITIVE_SEARCH, "delta_D": (2e-4, 0.7), "delta_N": (1e-3, 0.9)},
    linear=("A", "B", "E"),
    columns=_additive_columns(_geometric_powers),
)

DECAYING_EXPONENTS = Form(
    name="decaying-exponents",
    constants=(*ADDITIVE, "R_D", "R_N"),
    law=lambda params, runs: laws.decaying_exponents(params, runs.N, runs.D, runs.U),
    slopes=_exponent_slopes,
    kinds={**ADDITIVE_KINDS, "R_D": Kind.DECAY, "R_N": Kind.DECAY},
    bounds={**ADDITIVE_BOUNDS, "R_D": (1e-2, 1e12), "R_N": (1e-2, 1e12)},
    search={**ADDITIVE_SEARCH, "R_D": (1e2, 1e6), "R_N": (1e2, 1e6)},
    linear=("A", "B", "E"),
    columns=_additive_columns(_exponent_powers),
)

PRACTICAL = Form(
    name="practical",
    constants=("a", "b", "c", "E", "alpha", "beta", "gamma", "delta", "L0"),
    law=lambda params, runs: laws.practical(params, runs.N, runs.D, runs.U),
    slopes=_practical_slopes,
    kinds={
        "a": Kind.AMPLITUDE,
        "b": Kind.AMPLITUDE,
        "c": Kind.AMPLITUDE,
        "E": Kind.LOSS,
        "alpha": Kind.EXPONENT,
        "beta": Kind.EXPONENT,
        "gamma": Kind.EXPONENT,
        "delta": Kind.EXPONENT,
    },
    bounds={
        "a": (1e-12, 1e30),
        "b": (1e-12, 1e30),
        "c": (1e-60, 1e60),
        "E": LOSS,
        "alpha": EXPONENT,
        "beta": EXPONENT,
        "gamma": EXPONENT,
        "delta": EXPONENT,
    },
    search={"E": (0.5, 3.0), "alpha": (0.1, 1.5), "beta": (0.1, 1.5), "gamma": (0.2, 4.0), "delta": (0.2, 4.0)},
    linear=("a", "b", "c"),
    columns=_practical_columns,
    given=("L0",),
)

FORMS: Mapping[str, Form] = MappingProxyType(
    {form.name: form for form in (CHINCHILLA, DATA_CONSTRAINED, GEOMETRIC, DECAYING_EXPONENTS, PRACTICAL)}
)
"""Every form by its name. Decay of data only is data-constrained with R_N given as infinite, and so on."""
