"""What a grid of runs says about a constant: an interval, a bound on one side, or nothing."""

import enum
import math
from typing import NamedTuple

from card_scale.laws.dependence import Dependence


class Kind(enum.Enum):
    """What a constant is, and the largest ratio of its interval's ends for which it still counts as identified.

    A factor that says little about an amplitude, which is extrapolated to one parameter or one token, makes an exponent
    or an irreducible loss worthless. The published 95 % intervals of Chinchilla's constants (arXiv 2404.10102) span
    factors of 1.06 (E), 1.18 and 1.25 (exponents), 2.6 and 5.6 (amplitudes).
    """

    LOSS = ("an irreducible loss", 1.25)
    EXPONENT = ("an exponent", 2.0)
    AMPLITUDE = ("an amplitude", 10.0)
    DECAY = ("a constant of decay", 10.0)
    CROSSOVER = ("a crossover", 10.0)

    def __init__(self, label: str, widest: float) -> None:
        self.label = label
        self.widest = widest


class Verdict(enum.StrEnum):
    """Whether a constant is identified by the runs at all."""

    IDENTIFIED = "identified"
    LOWER_BOUND = "lower bound only"
    UPPER_BOUND = "upper bound only"
    NOT_IDENTIFIED = "not identified"


class Judgement(NamedTuple):
    """A verdict on one constant and what it rests on."""

    name: str
    estimate: float
    """At the lowest minimum; to be read with the interval only."""
    low: float
    high: float
    bootstrap: tuple[float, float] | None
    verdict: Verdict
    reason: str
    own: tuple[float, float]
    """The interval before the bootstrap over ladders widened it: of a fit, the profile's."""

    @property
    def widened(self) -> bool:
        """Whether the interval is wider than its own."""
        return (self.low, self.high) != self.own


def judge(
    name: str,
    kind: Kind,
    estimate: float,
    interval: tuple[float, float],
    bootstrap: tuple[float, float] | None = None,
    pattern: Dependence | None = None,
) -> Judgement:
    """Return the verdict on one constant.

    A form that misses a pattern in the runs identifies none of its constants: their intervals hold for a law that
    these runs contradict. They are still given, widened by the bootstrap over ladders.

    Args:
        name: of the constant.
        kind: of the constant, which sets how wide its interval may be.
        estimate: its value at the lowest minimum.
        interval: of the constant, infinite (or 0 below, for a constant that cannot be negative) where it has no end.
        bootstrap: another interval, by which a pattern widens the first.
        pattern: of the residuals, if they were looked at.
    """
    low, high = interval
    missed = pattern is not None and pattern.found
    if missed and bootstrap is not None:
        low, high = min(low, bootstrap[0]), max(high, bootstrap[1])
    by = " by both profile and bootstrap" if (low, high) != interval else ""
    verdict, reason = _by_interval(low, high, kind, by)
    if missed:
        misfit = "the form misses a pattern in the runs"
        if (low, high) != interval:
            misfit += f", so the bootstrap over ladders widens the profile's interval {interval_text(*interval)}"
        verdict, reason = Verdict.NOT_IDENTIFIED, f"{reason}; {misfit}" if reason else misfit
    return Judgement(name, estimate, low, high, bootstrap, verdict, reason, interval)


def interval_text(low: float, high: float) -> str:
    """Return an interval with round brackets at ends that are not there."""
    opening = "(" if low in (0.0, -math.inf) else "["
    return f"{opening}{low:.4g}, {high:.4g}{')' if math.isinf(high) else ']'}"


def _by_interval(low: float, high: float, kind: Kind, by: str) -> tuple[Verdict, str]:
    open_below, open_above = low in (0.0, -math.inf), math.isinf(high)
    if open_below and open_above:
        return Verdict.NOT_IDENTIFIED, f"no value is rejected{by}"
    if open_above:
        return Verdict.LOWER_BOUND, f"no value above {low:.4g} is rejected{by}, infinity included"
    if open_below:
        return Verdict.UPPER_BOUND, f"no value below {high:.4g} is rejected{by}, {low:.4g} included"
    if low < 0.0 <= high:
        return Verdict.NOT_IDENTIFIED, "neither sign is rejected"
    ratio = high / low if low > 0.0 else low / high
    if ratio > kind.widest:
        limit = f"the limit of {kind.label} is {kind.widest:g}"
        return Verdict.NOT_IDENTIFIED, f"known to a factor of {ratio:.3g} only, {limit}"
    return Verdict.IDENTIFIED, ""
