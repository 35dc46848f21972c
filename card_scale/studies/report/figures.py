"""The figures of the report: what each panel draws from the finished runs, or why the study does not allow it.

Every arm has one colour and one marker in all of them; upper bounds are dashed, and drawn beside exact likelihoods,
never ranked with them: a bound below an exact loss says that its model is better, a bound above says nothing.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from card_scale import charts
from card_scale.studies.report import compared, readings
from card_scale.studies.report.compared import Panel
from card_scale.studies.report.finished_runs import Point, Run, Study, passes_of
from card_scale.studies.report.readings import Crossing, named

LOSS = "validation loss, nats per token"


class Drawing(NamedTuple):
    """One panel of a figure."""

    title: str
    draw: Callable[[Any], None]
    """Draws on matplotlib axes."""
    reading: tuple[str, ...] = ()
    """What its numbers say, a sentence each."""


class Figure(NamedTuple):
    """A figure of the report."""

    name: str
    """File name without its ending."""
    title: str
    caption: str
    drawings: tuple[Drawing, ...]


class Missing(NamedTuple):
    """A figure that the study does not allow."""

    title: str
    reason: str


def figures(study: Study, crossings: Sequence[Crossing]) -> list[Figure | Missing]:
    """Return the figures of a study's runs, in the report's order; ``crossings`` are marked where losses meet FLOPs."""
    return [
        _loss_over_epochs(study),
        _gap_over_epochs(study),
        _loss_over_flops(study, crossings),
        _loss_by_pass(study),
    ]


def save(figure: Figure, path: Path) -> None:
    """Draw all panels of a figure into one file."""
    drawn, axes = charts.new_axes(len(figure.drawings), columns=2, panel=(6.0, 3.9))
    for axis, drawing in zip(axes, figure.drawings, strict=False):
        drawing.draw(axis)
        axis.set_title(drawing.title, fontsize=9, color=charts.INK)
    charts.save(drawn, path)


def look(study: Study, arm: str) -> dict[str, Any]:
    """Return how an arm's line looks, in every figure."""
    number = study.arms.index(arm)
    return {
        "color": charts.colour(number),
        "marker": charts.marker(number),
        "markersize": 4,
        "linewidth": 1.4,
        "linestyle": charts.BOUND_DASHES if study.is_bound(arm) else "-",
    }


def panel_title(size: str, unique: float) -> str:
    """Return the title of a panel."""
    return f"{size}, U = {unique:,.0f}"


def _loss_over_epochs(study: Study) -> Figure | Missing:
    title = "Validation loss over epochs"
    panels = compared.panels(study)
    if not any(len(ladder) > 1 for one in panels for ladder in one.ladders.values()):
        return Missing(title, "no arm was trained for two numbers of epochs on the same subset")

    def draw(one: Panel, axis: Any) -> None:
        _ladders(study, one, axis, "loss", LOSS)
        for arm in one.points:
            last = one.every(arm)[-1].runs
            stop = min((run for run in last if run.best_loss is not None), key=_best_loss, default=None)
            if stop is not None and stop.best_epoch and stop.best_epoch < 0.99 * stop.epochs:
                colour = look(study, arm)["color"]
                axis.plot(stop.best_epoch, stop.best_loss, marker="x", color=colour, markersize=6, linestyle="none")

    caption = (
        "Final loss of whole runs, one for each number of epochs, at the setting of lowest loss. Strong lines: the "
        "mean over the seeds that the tables compare. Thin lines, where shorter runs lack some of these seeds: the "
        "seeds that the arm's whole ladder has. Bars: from the lowest to the highest seed. A cross marks the lowest "
        "evaluation in the course of the longest run, where early stopping would have ended it."
    )
    drawings = tuple(
        Drawing(
            panel_title(one.size, one.unique),
            lambda axis, one=one: draw(one, axis),  # type: ignore[misc]
            readings.over_epochs(study, one),
        )
        for one in panels
    )
    return Figure("loss_over_epochs", title, caption, drawings)


def _best_loss(run: Run) -> float:
    return run.best_loss if run.best_loss is not None else np.inf


def _ladders(study: Study, one: Panel, axis: Any, name: str, label: str) -> None:
    """Draw each arm's ``name`` over epochs, and its name at the line's end."""
    ends = []
    for arm in one.points:
        style = look(study, arm)
        points = _with(one.points[arm], name)
        apart = _with(one.apart(arm), name)
        if apart:
            thin = style | {"linewidth": 0.7, "alpha": 0.6, "markerfacecolor": charts.PAPER}
            axis.plot(*_line(apart, name), **thin)
        if points:
            axis.plot(*_line(points, name), **style)
            for point in points:
                values = [getattr(run, name) for run in point.runs]
                axis.plot([point.first.epochs] * 2, [min(values), max(values)], color=style["color"], linewidth=1)
            ends.append(_end(study, arm, *(series[-1] for series in _line(points, name))))
    charts.value_ticks(axis.xaxis, [p.first.epochs for arm in one.points for p in one.every(arm)], "{:.3g}".format)
    axis.set_xlabel("epochs")
    axis.set_ylabel(label)
    charts.name_ends(axis, ends)


def _with(points: Iterable[Point], name: str) -> list[Point]:
    return [point for point in points if point.mean(name) is not None]


def _line(points: Sequence[Point], name: str) -> tuple[list[float], list[float]]:
    return [point.first.epochs for point in points], [point.mean(name) or 0.0 for point in points]


def _end(study: Study, arm: str, x: float, y: float) -> charts.End:
    return charts.End(x, y, named(study, arm), look(study, arm)["color"])


def _gap_over_epochs(study: Study) -> Figure | Missing:
    title = "Gap between validation and training samples over epochs"
    if all(run.gap is None for run in study.runs):
        return Missing(title, "the runs did not evaluate training samples (data.train_samples)")

    def draw(one: Panel, axis: Any) -> None:
        axis.axhline(0.0, color=charts.MUTED, linewidth=0.8)
        _ladders(study, one, axis, "gap", "gap, nats per token")

    caption = (
        "Validation loss minus the loss of training samples, both by the arm's own likelihood, after whole runs: "
        "what was learnt by heart. Seeds as above. Of a bound the difference of two bounds, which bounds nothing."
    )
    drawings = tuple(
        Drawing(
            panel_title(one.size, one.unique),
            lambda axis, one=one: draw(one, axis),  # type: ignore[misc]
            readings.of_gap(one),
        )
        for one in compared.panels(study)
    )
    return Figure("gap_over_epochs", title, caption, drawings)


def _loss_over_flops(study: Study, crossings: Sequence[Crossing]) -> Figure | Missing:
    title = "Validation loss over training FLOPs"
    if len({run.flops for run in study.runs}) < 2:
        return Missing(title, "all runs took the same FLOPs")

    def draw(unique: float, axis: Any) -> None:
        ends = []
        for arm in study.arms:
            points = compared.on_subset(study, arm, unique)
            if not points:
                continue
            style = look(study, arm)
            runs = [run for run in study.runs if run.arm == arm and run.unique == unique]
            mark = {"s": 9, "color": style["color"], "marker": style["marker"], "alpha": 0.45, "linewidths": 0}
            axis.scatter([r.flops for r in runs], [r.loss for r in runs], **mark)
            compute, lowest = envelope(points)
            axis.step(compute, lowest, where="post", color=style["color"], linestyle=style["linestyle"], linewidth=1.4)
            ends.append(_end(study, arm, compute[-1], lowest[-1]))
        for crossing in (one for one in crossings if one.unique == unique):
            colour = look(study, crossing.arm)["color"]
            axis.axvline(crossing.flops, color=colour, linewidth=0.9, linestyle=":")
            axis.axvspan(crossing.low, crossing.high, color=colour, alpha=0.08, linewidth=0)
        axis.set_xscale("log")
        charts.log_ticks(axis.xaxis)
        axis.set_xlabel("model FLOPs (visible pairs)")
        axis.set_ylabel(LOSS)
        charts.name_ends(axis, ends)

    caption = (
        "Every finished run of all sizes; the lines are the lowest loss reached with at most so many FLOPs, on the "
        "seeds of the figures above. A dotted line marks where an arm falls below the base for good, shaded its 95 "
        "% interval; crossovers that these runs do not identify are not drawn, and stand in the table."
    )
    drawings = tuple(
        Drawing(
            f"U = {unique:,.0f}, all sizes",
            lambda axis, unique=unique: draw(unique, axis),  # type: ignore[misc]
            readings.of_compute(study, unique, crossings),
        )
        for unique in sorted({unique for _, unique in study.panels()})
    )
    return Figure("loss_over_flops", title, caption, drawings)


def envelope(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    """Return FLOPs, increasing, and the lowest loss, a mean over seeds, reached up to them."""
    ordered = sorted(points, key=lambda point: point.first.flops)
    lowest = np.minimum.accumulate([point.loss for point in ordered])
    return [point.first.flops for point in ordered], lowest.tolist()


def _loss_by_pass(study: Study) -> Figure | Missing:
    title = "Training loss by pass over the data"
    if not study.passes:
        return Missing(title, "losses_by_pass.csv does not stand beside the table")

    def draw(one: Panel, axis: Any) -> None:
        ends, every = [], []
        for arm in one.points:
            curve = passes_of(study, one.every(arm)[-1].first.name)
            if not curve:
                continue
            style = look(study, arm) | {"linewidth": 1.0, "markersize": 3, "markevery": max(1, len(curve) // 12)}
            axis.plot(*_with_holes(curve), **style)
            every += [number for number, _ in curve]
            ends.append(_end(study, arm, *curve[-1]))
        if every:
            powers = [2.0**power for power in range(int(np.log2(max(every))) + 1)]
            charts.value_ticks(axis.xaxis, [*powers, max(every)])
        axis.set_xlabel("pass over the data")
        axis.set_ylabel("training loss, nats per scored token")
        charts.name_ends(axis, ends)

    caption = (
        "Mean unweighted cross-entropy of the logged batches in each pass of the longest run (of one seed), under "
        "the arm's own corruption: arms that mask solve a harder task, so compare shapes, not heights. Where no "
        "batch of a pass was logged the line has a hole; losses_by_pass.csv says which share of a pass was."
    )
    drawings = tuple(
        Drawing(panel_title(one.size, one.unique), lambda axis, one=one: draw(one, axis))  # type: ignore[misc]
        for one in compared.panels(study)
    )
    return Figure("loss_by_pass", title, caption, drawings)


def _with_holes(curve: Sequence[tuple[int, float]]) -> tuple[list[float], list[float]]:
    """Return passes and losses with a NaN wherever passes are missing."""
    x: list[float] = []
    y: list[float] = []
    for number, loss in curve:
        if x and number > x[-1] + 1:
            x.append(x[-1] + 0.5)
            y.append(np.nan)
        x.append(float(number))
        y.append(loss)
    return x, y
