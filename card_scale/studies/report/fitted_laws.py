"""Laws of repetition fitted to each arm of a study, and where the arms' loss-compute curves cross."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from card_scale.errors import DataError
from card_scale.laws import fit_figures as law_figures
from card_scale.laws import fit_report as report
from card_scale.laws.analysis import Analysis, Settings, analyse
from card_scale.laws.crossover import Crossover, crossover
from card_scale.laws.forms import FORMS
from card_scale.laws.formulas import saturating
from card_scale.laws.published import PRABHUDESAI_CRITICAL_COMPUTE
from card_scale.laws.runs import Runs
from card_scale.laws.verdict import Verdict
from card_scale.studies.report.figures import Crossing, Figure, Missing, new_axes
from card_scale.studies.report.finished_runs import Point, Study


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


def fit_arms(study: Study, form: str, settings: Settings) -> list[Fitted]:
    """Fit a form to each arm's runs: of each cell, those of the setting with the lowest mean loss.

    The practical law takes the logarithm of the vocabulary's size as the loss of a model that knows nothing.
    """
    fitted = []
    for arm in study.arms:
        runs = as_runs(study.tuned(arm))
        given = _given(study, form)
        try:
            fitted.append(Fitted(arm, analyse(FORMS[form], runs, given, settings), ""))
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

    Each cell stands with its best setting.
    """
    found = []
    for challenger in (arm for arm in study.arms if arm != base):
        for unique in sorted({run.unique for run in study.runs if run.whole_epochs}):
            first, second = (
                as_runs([point for point in study.tuned(arm) if point.first.unique == unique])
                for arm in (base, challenger)
            )
            try:
                found.append(Crossed(base, challenger, unique, crossover(first, second, samples, seed), ""))
            except DataError as error:
                found.append(Crossed(base, challenger, unique, None, str(error)))
    return found


def crossings(crossed: list[Crossed]) -> list[Crossing]:
    """Return the crossovers that lie inside the runs, for the figure of losses over FLOPs."""
    return [
        Crossing(one.challenger, one.unique, one.found.compute) for one in crossed if one.found and one.found.inside
    ]


def critical_compute(crossed: list[Crossed]) -> Figure | Missing:
    """Return the figure of crossover compute over unique tokens."""
    title = "Crossover compute over unique tokens"
    by_arm: dict[str, list[Crossover]] = {}
    for one in crossed:
        if one.found and one.found.bounded:
            by_arm.setdefault(one.challenger, []).append(one.found)
    if not any(len(found) > 1 for found in by_arm.values()):
        return Missing(title, "no arm crosses the base, with its whole interval inside the runs, on two subsets")

    def draw() -> Any:
        figure, (axis,) = new_axes(1)
        uniques = np.array(sorted({one.unique for found in by_arm.values() for one in found}))
        for number, (arm, found) in enumerate(by_arm.items(), start=1):
            for one in found:
                axis.plot([one.unique] * 2, [one.low, one.high], color=f"C{number}", linewidth=1)
            points = ([one.unique for one in found], [one.compute for one in found])
            axis.plot(*points, marker="o", color=f"C{number}", label=arm)
        published = PRABHUDESAI_CRITICAL_COMPUTE["k"] * uniques ** PRABHUDESAI_CRITICAL_COMPUTE["slope"]
        axis.plot(uniques, published, color="grey", linestyle="--", label="masked diffusion, arXiv 2507.15857")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("unique tokens")
        axis.set_ylabel("FLOPs")
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
        return figure

    caption = "Where each arm falls below the base for good; bars are 95 % intervals."
    return Figure("critical_compute", title, caption, draw)


def effective_data(fitted: list[Fitted]) -> Figure | Missing:
    """Return the figure of D' / D over epochs with the interval of R_D."""
    title = "Effective data over epochs"
    shown = [(one.arm, one.analysis) for one in fitted if one.analysis and "R_D" in one.analysis.fit.free]
    if not shown:
        reasons = "; ".join(f"{one.arm}: {one.reason}" for one in fitted if one.reason)
        return Missing(title, f"no arm's R_D could be fitted. {reasons}")

    def draw() -> Any:
        figure, (axis,) = new_axes(1)
        for number, (arm, analysis) in enumerate(shown):
            judged = next(one for one in analysis.judgements if one.name == "R_D")
            epochs = np.geomspace(1.0, float((analysis.fit.runs.D / analysis.fit.runs.U).max()), 60)
            low, high = ((1.0 + saturating(epochs - 1.0, end)) / epochs for end in (judged.low, judged.high))
            label = f"{arm}: R_D {judged.verdict}, [{judged.low:.3g}, {judged.high:.3g}]"
            axis.fill_between(epochs, low, high, color=f"C{number}", alpha=0.2, linewidth=0, label=label)
            if judged.verdict is Verdict.IDENTIFIED:
                middle = (1.0 + saturating(epochs - 1.0, judged.estimate)) / epochs
                axis.plot(epochs, middle, color=f"C{number}", linewidth=1)
        axis.set_xscale("log", base=2)
        axis.set_xlabel("epochs")
        axis.set_ylabel("D' / D")
        axis.set_ylim(0.0, 1.05)
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
        return figure

    caption = (
        "What a processed token is worth, by the law fitted to each arm. Bands span the interval of R_D; a line stands "
        "where the runs identify it. A band that fills the panel says nothing."
    )
    return Figure("effective_data", title, caption, draw)


def draw_fits(fitted: list[Fitted], directory: Path) -> list[tuple[str, Path]]:
    """Draw each arm's profiles and predicted against measured losses; returns (title, file)."""
    drawn = []
    for one in fitted:
        if one.analysis is not None:
            path = directory / f"law_{one.arm}.png"
            law_figures.draw(one.analysis, path)
            drawn.append((f"{one.arm}: profile likelihood, predicted against measured loss", path))
    return drawn


def fit_text(one: Fitted) -> str:
    """Return an arm's fit in lines."""
    return report.text(one.analysis, profiles=False) if one.analysis else f"not fitted: {one.reason}"
