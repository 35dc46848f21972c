"""Why one arm's step takes longer than another's: the difference, part by part."""

from collections.abc import Mapping
from typing import NamedTuple

from card_scale.cost.flops import Work
from card_scale.errors import NumericError


class Explanation(NamedTuple):
    """ratio - 1 = the sum of the shares + unexplained."""

    ratio: float
    """Step of the arm over step of the base, both undisturbed medians."""
    shares: dict[str, float]
    """By part: (the arm's seconds - the base's) / the base's step."""
    unexplained: float
    flops_shares: dict[str, float]
    """By part: (the arm's operations - the base's) / the base's; what the shares would be if both arms did every
    operation equally fast and nothing else took time."""
    flops_ratio: float
    adds_up_to: float
    """(1 + sum of the shares) / ratio: 1 if the parts explain the measured ratio."""


def explain(
    parts: Mapping[str, float],
    base_parts: Mapping[str, float],
    *,
    step: float,
    base_step: float,
    work: Work,
    base_work: Work,
) -> Explanation:
    """Return the decomposition of ``step / base_step``.

    Args:
        parts: median seconds of each part of the arm's step.
        base_parts: those of the base's.
        step: median seconds of the arm's undisturbed step.
        base_step: that of the base's.
        work: operations of the arm's step.
        base_work: those of the base's.
    """
    shares = {name: (seconds - base_parts[name]) / base_step for name, seconds in parts.items()}
    ratio = step / base_step
    pairs = zip(Work._fields, work, base_work, strict=True)
    return Explanation(
        ratio=ratio,
        shares=shares,
        unexplained=ratio - 1.0 - sum(shares.values()),
        flops_shares={name: (operations - base) / base_work.total for name, operations, base in pairs},
        flops_ratio=work.total / base_work.total,
        adds_up_to=(1.0 + sum(shares.values())) / ratio,
    )


def check_adds_up(sums: Mapping[str, float], tolerance: float) -> None:
    """Raise NumericError if a sum of parts over its measured whole differs from 1 by more than ``tolerance``.

    ``sums`` holds that quotient by what it is of.
    """
    wrong = {name: quotient for name, quotient in sums.items() if not abs(quotient - 1.0) <= tolerance}
    if wrong:
        listed = ", ".join(f"{name} {quotient:.3f}" for name, quotient in wrong.items())
        raise NumericError(
            f"the parts of a step do not add up to the measured whole within {tolerance:.0%} (parts over whole: "
            f"{listed}); the decomposition is not to be trusted: use a quieter machine, more --steps or larger steps"
        )
