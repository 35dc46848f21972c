"""Figures of a fit: the profile of each constant, and predicted against measured loss."""

from pathlib import Path
from typing import Any

import numpy as np

from card_scale import charts
from card_scale.laws.analysis import Analysis
from card_scale.laws.huber import constants_at
from card_scale.laws.profile import Profile
from card_scale.laws.verdict import Judgement

HIGHEST = 3.0
"""Rise over the rejecting rise that is still drawn."""

CAPTION = (
    "Each constant: how far the objective rises above its minimum, over the rise that rejects a value (dashed). "
    "Shaded is the interval that the report gives: the profile's, widened by the bootstrap over ladders where the law "
    "misses a pattern. Last: predicted against measured loss."
)


def draw(analysis: Analysis, path: Path) -> None:
    """Write the figure of an analysis to ``path``, as its ending says."""
    charts.save(figure(analysis), path)


def figure(analysis: Analysis) -> Any:
    """Return the matplotlib figure of an analysis."""
    found, level = analysis.fit, 100.0 * analysis.settings.level
    drawn, axes = charts.new_axes(len(analysis.profiles) + 1, panel=(3.6, 3.0))
    for axis, one, judgement in zip(axes, analysis.profiles, analysis.judgements, strict=False):
        _profile(axis, one, judgement)
    axes[0].set_ylabel(f"rise / rise that rejects ({level:g} %)")
    _measured(axes[len(analysis.profiles)], analysis)
    drawn.suptitle(f"{found.form.name}, {len(found.runs.loss)} runs", fontsize=10, color=charts.INK)
    return drawn


def _profile(axis: Any, one: Profile, judgement: Judgement) -> None:
    height = (one.objectives - one.lowest) / one.rise
    shown = height <= HIGHEST
    axis.plot(one.values[shown], height[shown], marker=".", markersize=3, linewidth=1, color=charts.colour(0))
    axis.axhline(1.0, color=charts.colour(1), linewidth=0.8, linestyle="--")
    ends = max(float(one.values[shown].min()), judgement.low), min(float(one.values[shown].max()), judgement.high)
    if ends[0] < ends[1]:
        axis.axvspan(*ends, color=charts.colour(5), alpha=0.18, linewidth=0)
    axis.set_xscale("log")
    axis.set_ylim(-0.1, HIGHEST)
    charts.log_ticks(axis.xaxis)
    axis.set_xlabel(one.name)
    axis.set_title(f"{one.name}: {judgement.verdict}", fontsize=9, color=charts.INK)


def _measured(axis: Any, analysis: Analysis) -> None:
    found = analysis.fit
    predicted = found.form.law(constants_at(found.form, found.best.logs), found.runs)
    held = np.zeros(len(predicted), dtype=bool)
    if analysis.extrapolation is not None:
        # Predicted by the fit that has not seen them.
        held[analysis.extrapolation.rows] = True
        predicted[analysis.extrapolation.rows] = found.runs.loss[analysis.extrapolation.rows] * np.exp(
            analysis.extrapolation.errors
        )
    axis.scatter(found.runs.loss[~held], predicted[~held], s=8, color=charts.colour(0), label="fitted")
    if held.any():
        axis.scatter(found.runs.loss[held], predicted[held], s=14, marker="s", color=charts.colour(1), label="held out")
        charts.legend(axis)
    ends = [float(min(found.runs.loss.min(), predicted.min())), float(max(found.runs.loss.max(), predicted.max()))]
    axis.plot(ends, ends, color=charts.MUTED, linewidth=0.8)
    axis.set_xlabel("measured loss (nats per token)")
    axis.set_ylabel("predicted")
