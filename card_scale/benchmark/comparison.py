"""What several training runs on the same data have learnt, by tokens and by model FLOPs."""

import statistics
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from card_scale import charts
from card_scale import config as configs
from card_scale.cost.flops import flops_per_token
from card_scale.data.manifest import Manifest
from card_scale.errors import DataError
from card_scale.model.vocabulary import padded_vocabulary
from card_scale.training.records import evaluations_of, read_metrics

Axis = Literal["tokens", "flops"]
AXES: tuple[Axis, ...] = typing.get_args(Axis)


class Point(NamedTuple):
    """One evaluation."""

    tokens: float
    """Clean tokens trained on."""
    flops: float
    """Model FLOPs spent in training, visible pairs of the attention only."""
    nll: float
    """Nats per predicted token."""
    standard_error: float
    """Of the noise of a bound's estimate; 0 for an exact likelihood."""


@dataclass(frozen=True)
class Curve:
    """The evaluations of a run."""

    name: str
    """Of its arm."""
    bound: bool
    """Whether the likelihood is an upper bound on the negative log-likelihood."""
    points: tuple[Point, ...]
    seed: int = 0
    others: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Other likelihoods at the end, by key of ``metrics.jsonl``, with their standard errors. They are compared with
    nothing but themselves."""

    def at(self, axis: Axis, cost: float) -> Point:
        """The point at a cost between the first and the last evaluation's, linear between evaluations."""
        costs = [getattr(point, axis) for point in self.points]
        return Point(*(float(np.interp(cost, costs, values)) for values in zip(*self.points, strict=True)))


def read_curve(name: str, directory: Path) -> Curve:
    """The curve of a run directory. Raises DataError where it holds no evaluation of a trained model."""
    config = configs.load(directory / "config.yaml", [])
    rows = padded_vocabulary(Manifest.load(config.data.path).vocabulary_size)
    per_token = flops_per_token(config.model, config.objective.attention, rows).causal
    evaluations = evaluations_of(read_metrics(directory / "metrics.jsonl"))
    if not any(record["step"] > 0 for record in evaluations):
        raise DataError(f"{directory / 'metrics.jsonl'} holds no evaluation after training; let the run end")
    points = []
    for record in evaluations:
        tokens = record["step"] * config.train.global_batch * config.model.length
        error = record.get("validation_nll_standard_error", 0.0)
        points.append(Point(tokens, tokens * per_token, record["validation_nll"], error))
    last = evaluations[-1]
    others = {
        key: (value, last.get(f"{key}_standard_error", 0.0))
        for key, value in last.items()
        if key.endswith("_nll") and key.startswith(f"{config.objective.name}/")
    }
    bound = any(record.get("bound", False) for record in evaluations)
    return Curve(name, bound, tuple(points), config.run.seed, others)


def at_equal_cost(curves: Sequence[Curve]) -> Mapping[str, Mapping[str, list[Point]]]:
    """Each arm's points, one a seed, at the tokens, and at the FLOPs, that all curves have reached."""
    equal: dict[str, dict[str, list[Point]]] = {}
    for axis in AXES:
        cost = min(getattr(curve.points[-1], axis) for curve in curves)
        equal[axis] = {}
        for curve in curves:
            equal[axis].setdefault(curve.name, []).append(curve.at(axis, cost))
    return equal


def table(curves: Sequence[Curve]) -> str:
    """The comparison in lines for a terminal, exact losses first.

    Means over seeds with their spread, of bounds with the noise's error.
    """
    equal = at_equal_cost(curves)
    bounds = {curve.name: curve.bound for curve in curves}
    names = sorted(bounds, key=bounds.__getitem__)
    width = max(map(len, names))
    lines = [f"{'':{width}}  {'equal tokens':>28}  {'equal FLOPs':>28}   held-out nats per token"]
    for name in names:
        cells = [_cell(equal[axis][name], bounds[name]) for axis in AXES]
        lines.append(f"{name:{width}}  {cells[0]:>28}  {cells[1]:>28}")
    if any(bounds.values()):
        lines.append(
            "<= is an upper bound: below an exact loss, by more than its error, it says that its model is better; "
            "above one it says nothing."
        )
    lines += _other_likelihoods(curves, width)
    return "\n".join(lines)


def _cell(points: Sequence[Point], bound: bool) -> str:
    nll, deviation = mean_and_deviation([point.nll for point in points])
    sign = "<=" if bound else "  "
    shown = deviation if len(points) > 1 else points[0].standard_error
    error = f" +- {shown:.3f}" if bound or len(points) > 1 else ""
    return f"{sign} {nll:.3f}{error} ({points[0].tokens / 1e6:.2f} M)"


def _other_likelihoods(curves: Sequence[Curve], width: int) -> list[str]:
    """Lines of what was evaluated beside, at the end of each run; none where nothing was."""
    keys = list(dict.fromkeys(key for curve in curves for key in curve.others))
    lines = []
    for key in keys:
        lines.append(f"{key}, at the end of each run, not to be compared with the above:")
        for name in dict.fromkeys(curve.name for curve in curves if key in curve.others):
            found = [curve.others[key] for curve in curves if curve.name == name]
            value, deviation = mean_and_deviation([one for one, _ in found])
            lines.append(f"{name:{width}}  {value:.3f} +- {deviation if len(found) > 1 else found[0][1]:.3f}")
    return lines


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """(mean, standard deviation of the sample; 0 for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def plot(curves: Sequence[Curve], title: str, path: Path) -> None:
    """Draw the curves over tokens and over FLOPs, one line a seed, bounds dashed, edged by their standard error."""
    names = list(dict.fromkeys(curve.name for curve in curves))
    figure, panels = charts.new_axes(2, panel=(6.2, 4.5))
    for panel, axis, label in zip(panels, AXES, ("clean tokens trained on", "model FLOPs of training"), strict=True):
        ends: dict[str, charts.End] = {}
        for curve in curves:
            trained = [point for point in curve.points if point.tokens]
            x, y = [getattr(point, axis) for point in trained], [point.nll for point in trained]
            number = names.index(curve.name)
            style = {"color": charts.colour(number), "linestyle": charts.BOUND_DASHES if curve.bound else "-"}
            panel.plot(x, y, linewidth=1.2, marker=charts.marker(number), markersize=3, **style)
            name = f"{curve.name} (upper bound)" if curve.bound else curve.name
            ends.setdefault(name, charts.End(x[-1], y[-1], name, charts.colour(number)))
        panel.set_ylim(*panel.get_ylim())  # of the lines: an error larger than the panel must not shrink them
        for curve in (one for one in curves if one.bound):
            trained = [point for point in curve.points if point.tokens]
            x = [getattr(point, axis) for point in trained]
            for side in (-1.0, 1.0):
                edge = [point.nll + side * point.standard_error for point in trained]
                panel.plot(x, edge, linewidth=0.5, alpha=0.5, color=charts.colour(names.index(curve.name)))
        panel.set_xlabel(label)
        panel.set_xscale("log")
        charts.log_ticks(panel.xaxis)
        charts.name_ends(panel, list(ends.values()))
    panels[0].set_ylabel("held-out text, nats per token")
    figure.suptitle(title, color=charts.INK)
    charts.save(figure, path)
