"""The figures of what a study swept beside the epochs: weight decay, and sizes as contours."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from card_scale import charts
from card_scale.studies.report import compared
from card_scale.studies.report.figures import LOSS, Drawing, Figure, Missing, look, panel_title
from card_scale.studies.report.finished_runs import Point, Study
from card_scale.studies.report.readings import named

_FEWEST = 3
"""Sizes, and numbers of epochs, that make contours."""


def loss_over_weight_decay(study: Study) -> Figure | Missing:
    """Return the figure of losses over weight decay, one line a cell that was trained with several."""
    title = "Validation loss over weight decay at fixed epochs"
    swept = {panel: found for panel in study.panels() if (found := sweeps(study, *panel))}
    if not swept:
        return Missing(title, "no arm was trained with two weight decays on the same cell")

    def draw(lines: Mapping[tuple[str, float, float, float], Sequence[Point]], axis: Any) -> None:
        ends = []
        for (arm, epochs, lr, dropout), points in lines.items():
            x, y = [p.first.setting.weight_decay for p in points], [p.loss for p in points]
            axis.plot(x, y, **look(study, arm) | {"linewidth": 1.0})
            others = [key for key in lines if key[:2] == (arm, epochs)]
            setting = f", lr {lr:g}, dropout {dropout:g}" if len(others) > 1 else ""
            ends.append(charts.End(x[-1], y[-1], f"{named(study, arm)}, {epochs:.3g} ep{setting}", _colour(study, arm)))
        axis.set_xscale("symlog", linthresh=0.1)
        decays = sorted({p.first.setting.weight_decay for points in lines.values() for p in points})
        axis.set_xticks(decays, [f"{decay:g}" for decay in decays])
        axis.set_xticks([], minor=True)
        axis.set_xlabel("weight decay")
        axis.set_ylabel(LOSS)
        charts.name_ends(axis, ends)

    caption = (
        "Cells that were trained with several weight decays, mean over all seeds of each; a tuned arm is tuned over "
        "these."
    )
    drawings = tuple(
        Drawing(panel_title(*panel), lambda axis, lines=lines: draw(lines, axis))  # type: ignore[misc]
        for panel, lines in swept.items()
    )
    return Figure("loss_over_weight_decay", title, caption, drawings)


def _colour(study: Study, arm: str) -> str:
    return str(look(study, arm)["color"])


def sweeps(study: Study, size: str, unique: float) -> Mapping[tuple[str, float, float, float], list[Point]]:
    """Return the cells of several weight decays, by arm, epochs, learning rate and dropout."""
    found: dict[tuple[str, float, float, float], list[Point]] = {}
    for arm in study.arms:
        for point in study.points(arm, size, unique):
            key = (arm, point.first.epochs, point.first.setting.lr, point.first.setting.dropout)
            found.setdefault(key, []).append(point)
    return {
        key: sorted(points, key=lambda point: point.first.setting.weight_decay)
        for key, points in found.items()
        if len(points) > 1
    }


def isoloss(study: Study) -> Figure | Missing:
    """Return the contours of loss over epochs and parameters, a panel each arm that has enough sizes."""
    title = "Loss over epochs and parameters"
    sizes = {run.size for run in study.runs}
    if len(sizes) < _FEWEST:
        return Missing(title, f"contours need three sizes, the study has {len(sizes)}")
    subsets = {unique for _, unique in study.panels()}
    unique = max(subsets, key=lambda subset: sum(run.unique == subset for run in study.runs))
    drawn = {}
    for arm in study.arms:
        points = compared.on_subset(study, arm, unique)
        axes = {p.first.epochs for p in points}, {p.first.parameters for p in points}
        if all(len(values) >= _FEWEST for values in axes):
            drawn[arm] = points
    if not drawn:
        return Missing(title, "no arm has three sizes and three numbers of epochs on one subset")

    def draw(points: Sequence[Point], axis: Any) -> None:
        x, y = [p.first.epochs for p in points], [p.first.parameters for p in points]
        logs = np.log(x), np.log(y)
        filled = axis.tricontourf(np.exp(logs[0]), np.exp(logs[1]), [p.loss for p in points], levels=12)
        axis.plot(x, y, ".", color=charts.PAPER, markersize=4)
        bar = axis.figure.colorbar(filled, ax=axis)
        bar.ax.tick_params(labelsize=8, labelcolor=charts.INK)
        charts.value_ticks(axis.xaxis, x, "{:.3g}".format)
        charts.value_ticks(axis.yaxis, y, charts.number_text)
        axis.set_xlabel("epochs")
        axis.set_ylabel("parameters")

    caption = "Interpolated between the runs (dots)."
    drawings = tuple(
        Drawing(f"{named(study, arm)}, U = {unique:,.0f}", lambda axis, points=points: draw(points, axis))  # type: ignore[misc]
        for arm, points in drawn.items()
    )
    return Figure("isoloss", title, caption, drawings)
