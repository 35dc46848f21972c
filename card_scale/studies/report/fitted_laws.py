"""Laws of repetition fitted to each arm of a study, and where the arms' loss-compute curves cross."""

import math
from typing import Any, NamedTuple

import numpy as np

from card_scale import charts
from card_scale.errors import DataError
from card_scale.laws import fit_figures as law_figures
from card_scale.laws import fit_report as report
from card_scale.laws.analysis import Analysis, Settings, analyse
from card_scale.laws.crossover import Crossover, crossover
from card_scale.laws.fit_report import judge_crossover
from card_scale.laws.forms import FORMS
from card_scale.laws.formulas import saturating
from card_scale.laws.published import PRABHUDESAI_CRITICAL_COMPUTE
from card_scale.laws.runs import Runs
from card_scale.laws.verdict import Verdict, interval_text
from card_scale.studies.report import compared
from card_scale.studies.report.figures import Drawing, Figure, Missing, look
from card_scale.studies.report.finished_runs import Point, Study
from card_scale.studies.report.readings import Crossing, named
from card_scale.waiting import Say, silent


class Fitted(NamedTuple):
    """The law of one arm, or why there is none."""

    arm: str
    analysis: Analysis | None
    reason: str


class Crossed(NamedTuple):
    """Where one arm's curve falls below another's on one subset, or why it is not known."""

    base: str
    challenger: str
    unique: float
    found: Crossover | None
    reason: str


def fit_arms(study: Study, form: str, settings: Settings, say: Say = silent) -> list[Fitted]:
    """Fit a form to each arm's runs: of each cell, those of the setting with the lowest mean loss.

    The practical law takes the logarithm of the vocabulary's size as the loss of a model that knows nothing.
    """
    fitted = []
    for arm in study.arms:
        say(f"law of {arm}")
        runs = as_runs(study.tuned(arm))
        given = _given(study, form)
        try:
            fitted.append(Fitted(arm, analyse(FORMS[form], runs, given, settings, say), ""))
        except DataError as error:
            fitted.append(Fitted(arm, None, str(error)))
    return fitted


def _given(study: Study, form: str) -> dict[str, float]:
    return {"L0": math.log(float(study.cells[0]["vocabulary_size"]))} if form == "practical" else {}


def as_runs(points: list[Point]) -> Runs:
    """Return the runs of all points as the fits take them."""
    runs = [run for point in points for run in point.runs]
    fields = ([getattr(run, name) for run in runs] for name in ("parameters", "tokens", "unique", "loss", "flops"))
    return Runs(*(np.array(values, np.float64) for values in fields))


def crossovers(study: Study, base: str, samples: int, seed: int) -> list[Crossed]:
    """Return where every other arm falls below ``base``, on each subset, by the FLOPs that the runs took.

    Each cell stands with its best setting, on the seeds that the panels compare. Of a base that is known by an upper
    bound only, no crossover is sought: where bounds cross says nothing about where the losses do.
    """
    found = []
    for challenger in (arm for arm in study.arms if arm != base):
        for unique in sorted({run.unique for run in study.runs if run.whole_epochs}):
            if study.is_bound(base):
                found.append(Crossed(base, challenger, unique, None, f"{base} is known by an upper bound only"))
                continue
            own = [compared.on_subset(study, arm, unique) for arm in (base, challenger)]
            seeds = [frozenset[str]().union(*(point.seeds for point in points)) for points in own]
            if all(seeds) and not seeds[0] & seeds[1]:
                found.append(Crossed(base, challenger, unique, None, "the two share no seed, hence no data"))
                continue
            first, second = (as_runs(points) for points in own)
            try:
                found.append(Crossed(base, challenger, unique, crossover(first, second, samples, seed), ""))
            except DataError as error:
                found.append(Crossed(base, challenger, unique, None, str(error)))
    return found


def crossings(crossed: list[Crossed]) -> list[Crossing]:
    """Return the crossovers that the runs identify, for the figure of losses over FLOPs."""
    return [
        Crossing(one.challenger, one.unique, one.found.compute, one.found.low, one.found.high)
        for one in crossed
        if one.found and one.found.bounded and judge_crossover(one.found).verdict is Verdict.IDENTIFIED
    ]


def critical_compute(study: Study, crossed: list[Crossed]) -> Figure | Missing:
    """Return the figure of crossover compute over unique tokens."""
    title = "Crossover compute over unique tokens"
    by_arm: dict[str, list[Crossover]] = {}
    for one in crossed:
        if one.found and one.found.bounded:
            by_arm.setdefault(one.challenger, []).append(one.found)
    if not any(len(found) > 1 for found in by_arm.values()):
        return Missing(title, "no arm crosses the base, with its whole interval inside the runs, on two subsets")

    def draw(axis: Any) -> None:
        uniques = np.array(sorted({one.unique for found in by_arm.values() for one in found}))
        for arm, found in by_arm.items():
            style = look(study, arm)
            for one in found:
                axis.plot([one.unique] * 2, [one.low, one.high], color=style["color"], linewidth=1)
            axis.plot(
                *zip(*((one.unique, one.compute) for one in found), strict=True), label=named(study, arm), **style
            )
        published = PRABHUDESAI_CRITICAL_COMPUTE["k"] * uniques ** PRABHUDESAI_CRITICAL_COMPUTE["slope"]
        label = "masked diffusion, arXiv 2507.15857"
        axis.plot(uniques, published, color=charts.MUTED, linestyle=":", label=label)
        axis.set(xscale="log", yscale="log", xlabel="unique tokens", ylabel="FLOPs")
        charts.value_ticks(axis.xaxis, uniques.tolist(), charts.number_text)
        charts.log_ticks(axis.yaxis)
        charts.legend(axis)

    caption = "Where each arm falls below the base for good; bars are 95 % intervals."
    return Figure("critical_compute", title, caption, (Drawing("all sizes", draw),))


def effective_data(study: Study, fitted: list[Fitted]) -> Figure | Missing:
    """Return the figure of D' / D over epochs with the interval of R_D, of the arms whose interval has an end."""
    title = "Effective data over epochs"
    judged = {
        one.arm: (one.analysis, next(found for found in one.analysis.judgements if found.name == "R_D"))
        for one in fitted
        if one.analysis and "R_D" in one.analysis.fit.free
    }
    if not judged:
        reasons = "; ".join(f"{one.arm}: {one.reason}" for one in fitted if one.reason)
        return Missing(title, f"no arm's R_D could be fitted. {reasons}")
    shown = {arm: pair for arm, pair in judged.items() if pair[1].low > 0.0 or math.isfinite(pair[1].high)}
    if not shown:
        return Missing(title, f"these runs reject no value of R_D of {', '.join(judged)}")

    def draw(axis: Any) -> None:
        ends = []
        for arm, (analysis, one) in shown.items():
            style = look(study, arm)
            line = {"color": style["color"], "linestyle": style["linestyle"]}
            epochs = np.geomspace(1.0, float((analysis.fit.runs.D / analysis.fit.runs.U).max()), 60)
            low, middle, high = (
                (1.0 + saturating(epochs - 1.0, value)) / epochs for value in (one.low, one.estimate, one.high)
            )
            axis.fill_between(epochs, low, high, color=style["color"], alpha=0.1, linewidth=0)
            for edge in (low, high):
                axis.plot(epochs, edge, linewidth=0.8, **line)
            if one.verdict is Verdict.IDENTIFIED:
                axis.plot(epochs, middle, linewidth=1.8, **line)
            ends.append(charts.End(float(epochs[-1]), float(low[-1]), named(study, arm), style["color"]))
        every = {float(end) for analysis, _ in shown.values() for end in (analysis.fit.runs.D / analysis.fit.runs.U)}
        charts.value_ticks(axis.xaxis, [end for end in every if end >= 1.0], "{:.3g}".format)
        axis.set(xlabel="epochs", ylabel="D' / D", ylim=(0.0, 1.05))
        charts.name_ends(axis, ends)

    caption = (
        "What a processed token is worth, by the law fitted to each arm. Bands span the interval of R_D; a strong line "
        "stands where the runs identify it. Arms of which no value is rejected are not drawn."
    )
    reading = tuple(
        f"{named(study, arm)}: R_D {one.verdict}, {interval_text(one.low, one.high)}."
        for arm, (_, one) in judged.items()
    )
    return Figure("effective_data", title, caption, (Drawing("all sizes and subsets", draw, reading),))


def draw_fits(fitted: list[Fitted]) -> list[tuple[str, Any]]:
    """Draw each arm's profiles and predicted against measured losses; returns (arm, matplotlib figure)."""
    return [(one.arm, law_figures.figure(one.analysis)) for one in fitted if one.analysis is not None]


def fit_text(one: Fitted) -> str:
    """Return an arm's fit in lines."""
    return report.text(one.analysis, profiles=False) if one.analysis else f"not fitted: {one.reason}"
