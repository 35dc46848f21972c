"""A form fitted to runs with everything that says what the fit is worth."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from card_scale.laws.bootstrap import bootstrap, percentile_interval
from card_scale.laws.dependence import Dependence, dependence, ladders
from card_scale.laws.fit import Fit, fit, fit_from
from card_scale.laws.forms import Form
from card_scale.laws.formulas import Array
from card_scale.laws.holdout import HoldOut, hold_out
from card_scale.laws.huber import residuals
from card_scale.laws.profile import Profile, profile
from card_scale.laws.runs import Runs
from card_scale.laws.verdict import Judgement, Verdict, judge
from card_scale.waiting import Say, silent

LOWER = 1e-6
"""Relative decrease of the objective at which a profile has found a minimum that the starts have missed."""

REPEATS = 3
"""How often the fit is taken up from such a minimum."""


@dataclass(frozen=True)
class Settings:
    """How a form is fitted."""

    starts: int = 64
    bootstrap: int = 200
    """Resamples; 0: none."""
    hold_out: int = 0
    """Runs of the most compute to hold out, with the whole of their cells; 0: none."""
    seed: int = 0
    level: float = 0.95


@dataclass(frozen=True)
class Analysis:
    """A fit and what it is worth."""

    fit: Fit
    pattern: Dependence
    profiles: list[Profile]
    judgements: list[Judgement]
    by_ladder: bool
    """Whether the bootstrap drew whole ladders, because the errors of neighbours are not independent."""
    extrapolation: HoldOut | None
    settings: Settings
    resamples: Array | None
    """What :func:`card_scale.laws.bootstrap.bootstrap` returned; None without one."""

    def unidentified(self) -> list[str]:
        """Return the names of the constants that these runs do not identify."""
        return [found.name for found in self.judgements if found.verdict is not Verdict.IDENTIFIED]


def analyse(form: Form, runs: Runs, fixed: Mapping[str, float], settings: Settings, say: Say = silent) -> Analysis:
    """Fit a form, profile every free constant, repeat the fit on resamples, and judge.

    ``say`` is told what is being done.

    Raises:
        ConfigurationError, DataError: see :func:`card_scale.laws.fit.check_given` and
            :func:`card_scale.laws.holdout.hold_out`.
    """
    extrapolation = None
    say(f"fitting {form.name}")
    if settings.hold_out:
        # First, because a hold-out that cannot be is known at once and the fit takes long.
        extrapolation = hold_out(form, runs, fixed, settings.hold_out, settings.starts, settings.seed)
    found = fit(form, runs, fixed, settings.starts, settings.seed)
    profiles = _profiles(found, settings, say)
    for _ in range(REPEATS):
        lowest = min(profiles, key=lambda one: one.lowest, default=None)
        if lowest is None or lowest.lowest >= found.best.objective * (1.0 - LOWER):
            break
        starts = np.stack([lowest.lowest_logs, *(mode.logs for mode in found.modes)])
        found = fit_from(form, runs, fixed, starts)
        profiles = _profiles(found, settings, say)
    pattern = dependence(runs, residuals(form, found.best.logs, runs))
    groups = ladders(runs) if pattern.found else None
    samples = bootstrap(found, settings.bootstrap, settings.seed, groups, say) if settings.bootstrap else None
    values = found.constants()
    judgements = []
    for one in profiles:
        resampled = None if samples is None else percentile_interval(found, samples, one.name, settings.level)
        judgements.append(
            judge(one.name, form.kinds[one.name], values[one.name], (one.low, one.high), resampled, pattern)
        )
    return Analysis(found, pattern, profiles, judgements, pattern.found, extrapolation, settings, samples)


def _profiles(found: Fit, settings: Settings, say: Say) -> list[Profile]:
    profiles: list[Profile] = []
    for name in found.free:
        say(f"profile of {name}, {len(profiles) + 1} of {len(found.free)}")
        profiles.append(profile(found, name, settings.level))
    return profiles
