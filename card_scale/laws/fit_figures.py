"""Figures of a fit: the profile of each constant, and predicted against measured loss."""

import math
from pathlib import Path

import numpy as np

from card_scale.laws.analysis import Analysis
from card_scale.laws.huber import constants_at

COLUMNS = 3
HIGHEST = 3.0
"""Rise over the rejecting rise that is still drawn."""


def draw(analysis: Analysis, path: Path) -> None:
    """Write the figure of an analysis to ``path``, as its ending says."""
    # Imported only here: it takes a second, and no fit needs it.
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = analysis.fit
    panels = len(analysis.profiles) + 1
    rows = math.ceil(panels / COLUMNS)
    size = (3.6 * COLUMNS, 3.0 * rows)
    figure, axes = pyplot.subplots(rows, COLUMNS, figsize=size, squeeze=False, layout="constrained")
    flat = axes.ravel()
    for axis, one, judgement in zip(flat, analysis.profiles, analysis.judgements, strict=False):
        height = (one.objectives - one.lowest) / one.rise
        shown = height <= HIGHEST
        axis.plot(one.values[shown], height[shown], marker=".", markersize=3, linewidth=1)
        axis.axhline(1.0, color="C3", linewidth=0.8, linestyle="--")
        axis.set_xscale("log")
        axis.set_ylim(-0.1, HIGHEST)
        axis.set_xlabel(one.name)
        axis.set_title(f"{one.name}: {judgement.verdict}", fontsize=9)
    flat[0].set_ylabel(f"rise / rise that rejects ({100.0 * analysis.settings.level:g} %)")
    scatter = flat[len(analysis.profiles)]
    predicted = found.form.law(constants_at(found.form, found.best.logs), found.runs)
    held = np.zeros(len(predicted), dtype=bool)
    if analysis.extrapolation is not None:
        # Predicted by the fit that has not seen them.
        held[analysis.extrapolation.rows] = True
        predicted[analysis.extrapolation.rows] = found.runs.loss[analysis.extrapolation.rows] * np.exp(
            analysis.extrapolation.errors
        )
    scatter.scatter(found.runs.loss[~held], predicted[~held], s=6, label="fitted")
    if held.any():
        scatter.scatter(found.runs.loss[held], predicted[held], s=10, color="C3", label="held out")
        scatter.legend(fontsize=8)
    ends = [float(min(found.runs.loss.min(), predicted.min())), float(max(found.runs.loss.max(), predicted.max()))]
    scatter.plot(ends, ends, color="black", linewidth=0.8)
    scatter.set_xlabel("measured loss (nats per token)")
    scatter.set_ylabel("predicted")
    for axis in flat[panels:]:
        axis.set_axis_off()
    figure.suptitle(f"{found.form.name}, {len(found.runs.loss)} runs", fontsize=10)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
