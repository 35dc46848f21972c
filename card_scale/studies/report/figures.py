"""The figures of the report, each drawn from the finished runs, or a reason why the study does not allow it.

Upper bounds are dashed and drawn beside exact likelihoods, never ranked with them: a bound below an exact loss says
that its model is better, a bound above says nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from card_scale.studies.report.finished_runs import Point, Run, Study, passes_of

LOSS = "validation loss, nats per token"
_PANEL = (4.6, 3.6)
_MOST_COLUMNS = 3
_LEGEND_CHARACTERS = 64
"""That stand side by side below one panel, with the lines beside them."""


class Figure(NamedTuple):
    """A figure of the report."""

    name: str
    """File name without its ending."""
    title: str
    caption: str
    draw: Callable[[], Any]
    """Returns a matplotlib figure."""


class Missing(NamedTuple):
    """A figure that the study does not allow."""

    title: str
    reason: str


class Crossing(NamedTuple):
    """Where an arm falls below the first one for good."""

    arm: str
    unique: float
    flops: float


def figures(study: Study, crossings: Sequence[Crossing]) -> list[Figure | Missing]:
    """Return the figures of a study's runs, in the report's order; ``crossings`` are marked where losses meet FLOPs."""
    return [
        _loss_over_epochs(study),
        _gap_over_epochs(study),
        _loss_over_flops(study, crossings),
        _loss_by_pass(study),
        _loss_over_weight_decay(study),
        _isoloss(study),
        Missing(
            "Downstream accuracy over epochs", "no downstream task was evaluated; rising loss need not hurt accuracy"
        ),
    ]


def _loss_over_epochs(study: Study) -> Figure | Missing:
    title = "Validation loss over epochs"
    if not any(len(study.best_points(arm, *panel)) > 1 for panel in study.panels() for arm in study.arms):
        return Missing(title, "no arm was trained for two numbers of epochs on the same subset")

    def panel(axis: Any, size: str, unique: float) -> None:
        for number, arm in enumerate(study.arms):
            points = study.best_points(arm, size, unique)
            _line(axis, study, arm, number, study.curve(arm, size, unique), "loss")
            for point in points:
                axis.plot([point.first.epochs] * 2, point.spread, color=f"C{number}", linewidth=1)
            if points:
                stop = min((run for run in points[-1].runs if run.best_loss is not None), key=_best, default=None)
                if stop is not None:
                    axis.plot(stop.best_epoch, stop.best_loss, marker="x", color=f"C{number}", markersize=7)
        axis.set_xscale("log", base=2)

    caption = (
        "Final loss of whole runs, one for each number of epochs: lines through the seeds that all points of an arm "
        "share, bars from the lowest to the highest of all seeds. Each point is the setting of learning rate and "
        "regularisation with the lowest loss. A cross marks the lowest evaluation in the course of the longest run: "
        "where early stopping would have ended it."
    )
    return Figure("loss_over_epochs", title, caption, lambda: _panels(study, panel, "epochs", LOSS))


def _best(run: Run) -> float:
    return run.best_loss if run.best_loss is not None else np.inf


def _gap_over_epochs(study: Study) -> Figure | Missing:
    title = "Gap between validation and training samples over epochs"
    if all(run.gap is None for run in study.runs):
        return Missing(title, "the runs did not evaluate training samples (data.train_samples)")

    def panel(axis: Any, size: str, unique: float) -> None:
        for number, arm in enumerate(study.arms):
            points = [point for point in study.curve(arm, size, unique) if point.mean("gap") is not None]
            _line(axis, study, arm, number, points, "gap")
        axis.set_xscale("log", base=2)
        axis.axhline(0.0, color="black", linewidth=0.6)

    caption = "Validation loss minus the loss of training samples, both by the arm's own likelihood, after whole runs."
    return Figure("gap_over_epochs", title, caption, lambda: _panels(study, panel, "epochs", "gap, nats per token"))


def _loss_over_flops(study: Study, crossings: Sequence[Crossing]) -> Figure | Missing:
    title = "Validation loss over training FLOPs"
    uniques = sorted({unique for _, unique in study.panels()})
    if len({run.flops for run in study.runs}) < 2:
        return Missing(title, "all runs took the same FLOPs")

    def draw() -> Any:
        figure, axes = new_axes(len(uniques))
        for axis, unique in zip(axes, uniques, strict=False):
            for number, arm in enumerate(study.arms):
                runs = [run for run in study.runs if run.arm == arm and run.unique == unique]
                if not runs:
                    continue
                axis.scatter([r.flops for r in runs], [r.loss for r in runs], s=9, color=f"C{number}", alpha=0.5)
                compute, lowest = envelope([point for point in study.tuned(arm) if point.first.unique == unique])
                axis.step(
                    compute, lowest, where="post", color=f"C{number}", label=_label(study, arm), **_style(study, arm)
                )
                for crossing in crossings:
                    if (crossing.arm, crossing.unique) == (arm, unique):
                        axis.axvline(crossing.flops, color=f"C{number}", linewidth=0.8, linestyle=":")
            axis.set_xscale("log")
            axis.set_title(f"U = {unique:,.0f}", fontsize=9)
            axis.set_xlabel("model FLOPs (visible pairs)")
            axis.grid(alpha=0.3)
        axes[0].set_ylabel(LOSS)
        axes[0].legend(fontsize=7)
        return figure

    caption = (
        "Every finished run of all sizes; the lines are the lowest loss, a mean over seeds, reached with at most so "
        "many FLOPs. A dotted line marks where an arm falls below the base for good; the table of "
        "crossovers gives intervals."
    )
    return Figure("loss_over_flops", title, caption, draw)


def envelope(points: list[Point]) -> tuple[list[float], list[float]]:
    """Return FLOPs, increasing, and the lowest loss, a mean over seeds, reached up to them."""
    ordered = sorted(points, key=lambda point: point.first.flops)
    lowest = np.minimum.accumulate([point.loss for point in ordered])
    return [point.first.flops for point in ordered], lowest.tolist()


def _loss_by_pass(study: Study) -> Figure | Missing:
    title = "Training loss by pass over the data"
    if not study.passes:
        return Missing(title, "losses_by_pass.csv does not stand beside the table")

    def panel(axis: Any, size: str, unique: float) -> None:
        for number, arm in enumerate(study.arms):
            points = study.best_points(arm, size, unique)
            curve = passes_of(study, points[-1].first.name) if points else []
            if curve:
                x, y = zip(*curve, strict=True)
                axis.plot(x, y, color=f"C{number}", label=_label(study, arm), linewidth=1, marker=".", markersize=3)
        axis.set_xscale("log", base=2)

    caption = (
        "Mean unweighted cross-entropy of the logged batches in each pass of the longest run, under the arm's own "
        "corruption: arms that mask solve a harder task, so compare shapes, not heights."
    )
    return Figure("loss_by_pass", title, caption, lambda: _panels(study, panel, "pass over the data", "training loss"))


def _loss_over_weight_decay(study: Study) -> Figure | Missing:
    title = "Validation loss over weight decay at fixed epochs"
    swept = {panel: found for panel in study.panels() if (found := _sweeps(study, *panel))}
    if not swept:
        return Missing(title, "no arm was trained with two weight decays on the same cell")

    def panel(axis: Any, size: str, unique: float) -> None:
        for (arm, epochs, lr, dropout), points in swept.get((size, unique), {}).items():
            x, y = [p.first.setting.weight_decay for p in points], [p.loss for p in points]
            label = f"{_label(study, arm)}, {epochs:.4g} epochs, lr {lr:g}, dropout {dropout:g}"
            axis.plot(x, y, marker="o", markersize=4, label=label, **_style(study, arm))
        axis.set_xscale("symlog", linthresh=0.1)
        decays = sorted(
            {p.first.setting.weight_decay for points in swept.get((size, unique), {}).values() for p in points}
        )
        axis.set_xticks(decays, [f"{decay:g}" for decay in decays])

    caption = "Cells that were trained with several weight decays, mean over seeds; a tuned arm is tuned over these."
    return Figure("loss_over_weight_decay", title, caption, lambda: _panels(study, panel, "weight decay", LOSS))


def _sweeps(study: Study, size: str, unique: float) -> Mapping[tuple[str, float, float, float], list[Point]]:
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


def _isoloss(study: Study) -> Figure | Missing:
    title = "Loss over epochs and parameters"
    sizes = {run.size for run in study.runs}
    if len(sizes) < 3:
        return Missing(title, f"contours need three sizes, the study has {len(sizes)}")
    unique = max({unique for _, unique in study.panels()}, key=lambda u: sum(run.unique == u for run in study.runs))
    drawn = {}
    for arm in study.arms:
        points = [p for size, u in study.panels() if u == unique for p in study.curve(arm, size, unique)]
        if len({p.first.epochs for p in points}) >= 3 and len({p.first.parameters for p in points}) >= 3:
            drawn[arm] = points
    if not drawn:
        return Missing(title, "no arm has three sizes and three numbers of epochs on one subset")

    def draw() -> Any:
        figure, axes = new_axes(len(drawn))
        for axis, (arm, points) in zip(axes, drawn.items(), strict=False):
            x = np.log2([p.first.epochs for p in points])
            y = np.log10([p.first.parameters for p in points])
            filled = axis.tricontourf(x, y, [p.loss for p in points], levels=12)
            axis.plot(x, y, ".", color="white", markersize=4)
            figure.colorbar(filled, ax=axis)
            axis.set_title(f"{_label(study, arm)}, U = {unique:,.0f}", fontsize=9)
            axis.set_xlabel("log2 epochs")
        axes[0].set_ylabel("log10 parameters")
        return figure

    return Figure("isoloss", title, "Interpolated between the runs (dots), linear in both logarithms.", draw)


def _panels(study: Study, panel: Callable[[Any, str, float], None], x: str, y: str) -> Any:
    """Return a figure with one panel for each size and subset."""
    wanted = study.panels()
    figure, axes = new_axes(len(wanted))
    for axis, (size, unique) in zip(axes, wanted, strict=False):
        panel(axis, size, unique)
        axis.set_title(f"{size}, U = {unique:,.0f}", fontsize=9)
        axis.set_xlabel(x)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(y)
    # Not every arm need stand in the first panel.
    found = [axis.get_legend_handles_labels() for axis in axes]
    handles = {label: handle for pair in found for handle, label in zip(*pair, strict=True)}
    columns = min(4, max(1, int(_LEGEND_CHARACTERS * len(wanted) / max(map(len, handles)))))
    figure.legend(list(handles.values()), list(handles), fontsize=7, loc="outside lower center", ncols=columns)
    return figure


def new_axes(count: int) -> tuple[Any, list[Any]]:
    """Return a figure and its ``count`` axes; drawing needs matplotlib, which is imported only here."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(count, _MOST_COLUMNS)
    rows = -(-count // columns)
    size = (_PANEL[0] * columns, _PANEL[1] * rows)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    flat = list(axes.ravel())
    for axis in flat[count:]:
        axis.set_axis_off()
    return figure, flat


def _line(axis: Any, study: Study, arm: str, number: int, points: list[Point], name: str) -> None:
    if not points:
        return
    x, y = [point.first.epochs for point in points], [point.mean(name) for point in points]
    axis.plot(x, y, color=f"C{number}", marker="o", markersize=4, label=_label(study, arm), **_style(study, arm))


def _label(study: Study, arm: str) -> str:
    return f"{arm} (upper bound)" if study.is_bound(arm) else arm


def _style(study: Study, arm: str) -> dict[str, Any]:
    return {"linestyle": "--" if study.is_bound(arm) else "-"}
