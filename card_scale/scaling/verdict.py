"""What a grid of runs says about a constant: an interval, a bound on one side, or nothing."""

import enum
import math
from typing import NamedTuple

from card_scale.scaling.dependence import Dependence

WIDEST = 10.0
"""Largest ratio of an interval's ends for which the constant still counts as identified."""


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


def judge(
    name: str,
    estimate: float,
    profile: tuple[float, float],
    bootstrap: tuple[float, float] | None,
    pattern: Dependence,
) -> Judgement:
    """Return the verdict on one constant.

    A form that misses a pattern in the runs identifies none of its constants: their intervals hold for a law that
    these runs contradict. They are still given, widened by the bootstrap over ladders.

    Args:
        name: of the constant.
        estimate: its value at the lowest minimum.
        profile: profile-likelihood interval, 0 or infinite where it has no end.
        bootstrap: bootstrap interval, if there is one.
        pattern: of the residuals.
    """
    low, high = profile
    if pattern.found and bootstrap is not None:
        low, high = min(low, bootstrap[0]), max(high, bootstrap[1])
    verdict, reason = _by_interval(low, high)
    if pattern.found:
        misfit = "the form misses a pattern in the runs"
        verdict, reason = Verdict.NOT_IDENTIFIED, f"{reason}; {misfit}" if reason else misfit
    return Judgement(name, estimate, low, high, bootstrap, verdict, reason)


def _by_interval(low: float, high: float) -> tuple[Verdict, str]:
    if low == 0.0 and math.isinf(high):
        return Verdict.NOT_IDENTIFIED, "no value is rejected"
    if math.isinf(high):
        return Verdict.LOWER_BOUND, f"no value above {low:.4g} is rejected, infinity included"
    if low == 0.0:
        return Verdict.UPPER_BOUND, f"no value below {high:.4g} is rejected, 0 included"
    if high > WIDEST * low:
        return Verdict.NOT_IDENTIFIED, f"known to a factor of {high / low:.3g} only"
    return Verdict.IDENTIFIED, ""
