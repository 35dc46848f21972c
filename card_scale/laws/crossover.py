"""At which compute a challenger's loss falls below the base's, with an interval; and how that moves with the data."""

from fractions import Fraction
from typing import NamedTuple

import numpy as np

from card_scale.errors import DataError
from card_scale.laws.formulas import Array
from card_scale.laws.power_law import PowerLaw, fit_power_law, wider, with_bootstrap
from card_scale.laws.runs import Runs

FEWEST_RUNS = 3
"""Runs of each objective, of different compute, that make a curve."""


class Crossover(NamedTuple):
    """FLOPs beyond which the challenger is better, on one number of unique tokens.

    0: already at the smallest compute that both reach; infinite: not up to the largest. So an end of the interval that
    is 0 or infinite says that the crossing, if any, lies outside the runs.
    """

    unique: float
    compute: float
    low: float
    high: float
    first: float
    last: float
    """Range of compute over which the curves are compared."""
    carried: bool = False
    """Whether the comparison goes on beyond the base's runs, at its lowest loss, because more compute raised it."""
    draws: tuple[float, ...] = ()
    """``compute`` of each bootstrap resample; NaN where the resampled curves share no compute."""

    @property
    def inside(self) -> bool:
        """Whether the curves cross within the runs."""
        return 0.0 < self.compute < np.inf

    @property
    def bounded(self) -> bool:
        """Whether the crossing and both ends of its interval lie within the runs."""
        return self.inside and self.low > 0.0 and self.high < np.inf

    def why_unbounded(self) -> str:
        """Return what lies outside the runs, empty if nothing does."""
        if self.bounded:
            return ""
        if not self.inside:
            return "the curves do not cross within the runs"
        if not self.draws:
            return "it has no interval without resamples"
        open_ends = (("below", self.low == 0.0), ("above", np.isinf(self.high)))
        return f"its interval reaches {' and '.join(side for side, is_open in open_ends if is_open)} the runs"


def crossover(base: Runs, challenger: Runs, samples: int, seed: int = 0, level: float = 0.95) -> Crossover:
    """Return where the challenger's best loss for at most so much compute falls below the base's, for good.

    Each curve is the lowest loss of the runs up to a compute, linear in log compute between them; runs that differ in
    the seed only count as one of their mean loss, so that more seeds do not make a curve look better. Runs of each
    objective are drawn with replacement for the interval.

    The curves are compared up to the compute that both reach. Where the base's runs of most compute are not its best,
    its loss has turned: more compute does not lower it, so its curve is flat from there on and the comparison goes on
    to the challenger's last run.

    Args:
        base: runs of one objective on one number of unique tokens.
        challenger: those of the other, on the same.
        samples: bootstrap resamples.
        seed: of the draws.
        level: coverage of the interval.

    Raises:
        DataError: unlike or several numbers of unique tokens, too few runs, or no compute that both reach.
    """
    unique = np.unique(np.concatenate([base.U, challenger.U]))
    if len(unique) != 1:
        raise DataError(f"a crossover is of runs on one number of unique tokens; these have {unique.tolist()}")
    for name, runs in (("base", base), ("challenger", challenger)):
        if len(np.unique(runs.cost())) < FEWEST_RUNS:
            raise DataError(
                f"{len(np.unique(runs.cost()))} computes of the {name} on {unique[0]:.4g} unique tokens; "
                f"a curve needs {FEWEST_RUNS}"
            )
    first = max(base.cost().min(), challenger.cost().min())
    carried = bool(_turned(base) and challenger.cost().max() > base.cost().max())
    last = challenger.cost().max() if carried else min(base.cost().max(), challenger.cost().max())
    if first >= last:
        raise DataError(
            f"the curves on {unique[0]:.4g} unique tokens share no compute: base {base.cost().min():.3g} to "
            f"{base.cost().max():.3g} FLOPs, challenger {challenger.cost().min():.3g} to "
            f"{challenger.cost().max():.3g}"
        )
    # Independent draws for each number of unique tokens: a law is refitted to one draw of each.
    generator = np.random.default_rng([seed, int(unique[0])])
    drawn = np.array(
        [_crossing(_resample(base, generator), _resample(challenger, generator), carried) for _ in range(samples)]
    )
    # A resample may leave two curves that share no compute: it says nothing.
    crossings = np.sort(drawn[~np.isnan(drawn)])
    # Of the decimal number that was written: in float64 (1 - 0.9) / 2 of 100 draws falls short of 5.
    edge = int((1 - Fraction(str(level))) / 2 * len(crossings))
    low, high = (float(crossings[edge]), float(crossings[-1 - edge])) if len(crossings) else (0.0, np.inf)
    return Crossover(
        unique=float(unique[0]),
        compute=_crossing(base, challenger, carried),
        low=low,
        high=high,
        first=float(first),
        last=float(last),
        carried=carried,
        draws=tuple(drawn.tolist()),
    )


def critical_compute_law(crossovers: list[Crossover], level: float = 0.95) -> PowerLaw:
    """Fit C_crit = k U^slope, exponent ``U``, to the crossovers whose intervals lie within their runs.

    Others may be no crossings at all: two arms with one law cross somewhere by their noise. The intervals of k and the
    slope are the wider of the regression's and of those over refits to the crossovers' bootstrap draws, the i-th of
    each; two points leave the regression without one.

    Args:
        crossovers: all with one number of samples.
        level: coverage of the intervals.

    Raises:
        DataError: fewer than two of them.
    """
    kept = [found for found in crossovers if found.bounded]
    factor = {"U": [found.unique for found in kept]}
    law = fit_power_law([found.compute for found in kept], factor, level)
    # A draw outside the runs is taken at their edge: dropping it would narrow the interval.
    drawn = np.array([np.clip(found.draws, found.first, found.last) for found in kept])
    drawn = drawn[:, ~np.isnan(drawn).any(axis=0)]
    by_draws = with_bootstrap(law, [fit_power_law(column, factor, level) for column in drawn.T], level)
    return by_draws if len(kept) == 2 else wider(law, by_draws)


def frontier(runs: Runs) -> tuple[Array, Array]:
    """Return log compute, increasing, and the lowest loss reached up to it, a mean over seeds."""
    runs = runs.mean_over_seeds()
    order = np.argsort(runs.cost(), kind="stable")
    compute, lowest = np.log(runs.cost()[order]), np.minimum.accumulate(runs.loss[order])
    last = np.append(np.diff(compute) > 0.0, True)
    return compute[last], lowest[last]


def _resample(runs: Runs, draws: np.random.Generator) -> Runs:
    return runs.take(draws.integers(len(runs.loss), size=len(runs.loss)))


def _turned(runs: Runs) -> bool:
    """Whether the runs of most compute, mean over seeds, have a higher loss than others of less."""
    runs = runs.mean_over_seeds()
    return bool(runs.loss[runs.cost() == runs.cost().max()].min() > runs.loss.min())


def _crossing(base: Runs, challenger: Runs, carried: bool) -> float:
    """Return the FLOPs from which the challenger stays better; 0 or infinity as in Crossover, NaN without overlap.

    ``carried``: up to the challenger's last compute, the base's curve being flat beyond its own.
    """
    base_compute, base_loss = frontier(base)
    other_compute, other_loss = frontier(challenger)
    start = max(base_compute[0], other_compute[0])
    end = other_compute[-1] if carried else min(base_compute[-1], other_compute[-1])
    if start > end:
        return np.nan
    knots = np.unique(np.concatenate([base_compute, other_compute, [start, end]]))
    knots = knots[(knots >= start) & (knots <= end)]
    lead = np.interp(knots, base_compute, base_loss) - np.interp(knots, other_compute, other_loss)
    behind = np.flatnonzero(lead <= 0.0)
    if not len(behind):
        return 0.0
    at = int(behind[-1])
    if at == len(knots) - 1:
        return np.inf
    share = lead[at] / (lead[at] - lead[at + 1])
    return float(np.exp(knots[at] + share * (knots[at + 1] - knots[at])))
