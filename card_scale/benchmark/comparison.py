"""What several training runs on the same data have learnt, by tokens and by model FLOPs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from card_scale import config as configs
from card_scale.cost.flops import flops_per_token
from card_scale.data.manifest import Manifest
from card_scale.errors import DataError
from card_scale.model.vocabulary import padded_vocabulary
from card_scale.training.records import evaluations_of, read_metrics

AXES: tuple[Literal["tokens"], Literal["flops"]] = ("tokens", "flops")


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
    bound: bool
    """Whether the likelihood is an upper bound on the negative log-likelihood."""
    points: tuple[Point, ...]

    def at(self, axis: Literal["tokens", "flops"], cost: float) -> Point:
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
    return Curve(name, any(record.get("bound", False) for record in evaluations), tuple(points))


def at_equal_cost(curves: Sequence[Curve]) -> Mapping[str, Mapping[str, Point]]:
    """Each curve's point at the tokens, and at the FLOPs, that all of them have reached."""
    equal = {}
    for axis in AXES:
        cost = min(getattr(curve.points[-1], axis) for curve in curves)
        equal[axis] = {curve.name: curve.at(axis, cost) for curve in curves}
    return equal


def table(curves: Sequence[Curve]) -> str:
    """The comparison in lines for a terminal."""
    equal = at_equal_cost(curves)
    width = max(len(curve.name) for curve in curves)
    lines = [f"{'':{width}}  {'equal tokens':>24}  {'equal FLOPs':>24}   held-out nats per token"]
    for curve in curves:
        cells = []
        for cost in AXES:
            point = equal[cost][curve.name]
            sign = "<=" if curve.bound else "  "
            error = f" +- {point.standard_error:.3f}" if curve.bound else ""
            cells.append(f"{sign} {point.nll:.3f}{error} ({point.tokens / 1e6:.2f} M)")
        lines.append(f"{curve.name:{width}}  {cells[0]:>24}  {cells[1]:>24}")
    return "\n".join(lines)


def plot(curves: Sequence[Curve], title: str, path: Path) -> None:
    """Draw the curves over tokens and over FLOPs, bounds dashed with their standard error."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for panel, axis, label in zip(panels, AXES, ("clean tokens trained on", "model FLOPs of training"), strict=True):
        for curve in curves:
            trained = [point for point in curve.points if point.tokens]
            x, y = [getattr(point, axis) for point in trained], [point.nll for point in trained]
            shown = f"{curve.name} (bound)" if curve.bound else curve.name
            (line,) = panel.plot(x, y, "--" if curve.bound else "-", marker=".", label=shown)
            low = [point.nll - point.standard_error for point in trained]
            high = [point.nll + point.standard_error for point in trained]
            panel.fill_between(x, low, high, color=line.get_color(), alpha=0.25, linewidth=0)
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("held-out text, nats per token")
    panels[0].legend()
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
