"""The figure of the benchmark: block diffusion's step over CARD's, by length, block and backend."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from card_scale import charts
from card_scale.errors import ConfigurationError, DataError
from card_scale.files import read_json

BASE = "card"
"""The arm in the denominator, with its best kernel."""


class Point(NamedTuple):
    """A measured ratio at one length."""

    length: int
    median: float
    low: float
    high: float
    """Ends of the 95 % bootstrap interval."""
    by_flops: float
    """The ratio of floating-point operations."""


class Measured(NamedTuple):
    """A point and what it is of."""

    point: Point
    block: int
    backend: str
    result: dict[str, Any]
    """That it stands in."""


def read_results(path: Path) -> list[dict[str, Any]]:
    """Return the results of a file that ``tools/bench_step_latency.py`` has written.

    Raises DataError, naming the file, for one of another kind; OSError where it cannot be read.
    """
    record = read_json(path)
    results = record.get("results") if isinstance(record, dict) else None
    kinds = {"model": str, "engine": str, "length": int, "arms": dict, "comparisons": list}
    if not isinstance(results, list) or not all(
        isinstance(result, dict) and all(isinstance(result.get(key), kind) for key, kind in kinds.items())
        for result in results
    ):
        raise DataError(f"{path}: no results of tools/bench_step_latency.py, whose keys are {', '.join(kinds)}")
    return results


def measured(results: Sequence[dict[str, Any]]) -> Iterator[Measured]:
    """Yield the ratios of block diffusion over CARD, in order of length."""
    for result in sorted(results, key=lambda result: result["length"]):
        for pair in result["comparisons"]:
            arm = result["arms"][pair["arm"]]
            if arm["objective"] == "bd3lm" and pair["base"] == BASE:
                point = Point(result["length"], **pair["paired_ratio"], by_flops=pair["flops_ratio"])
                yield Measured(point, arm["block"], arm["attention_backend"], result)


def lines(results: Sequence[dict[str, Any]]) -> dict[tuple[str, int], dict[str, list[Point]]]:
    """Return the points of block diffusion over CARD, in order of length, by (model and engine, block) and backend."""
    found: dict[tuple[str, int], dict[str, list[Point]]] = {}
    for one in measured(results):
        panel = found.setdefault((f"{one.result['model']}, {one.result['engine']}", one.block), {})
        panel.setdefault(one.backend, []).append(one.point)
    return found


def draw(results: Sequence[dict[str, Any]], path: Path, device: str) -> None:
    """Write the figure of :func:`lines` to ``path`` (PNG, or any format that matplotlib knows by the ending).

    ``device`` is named in the title. Raises ConfigurationError if no result compares bd3lm with CARD.
    """
    panels = lines(results)
    if not panels:
        raise ConfigurationError("no figure to draw: the results hold no bd3lm arm beside card; give --arms card bd3lm")
    blocks = sorted({block for _, block in panels})
    models = list(dict.fromkeys(model for model, _ in panels))
    backends = list(dict.fromkeys(backend for panel in panels.values() for backend in panel))
    highest = max(point.high for panel in panels.values() for points in panel.values() for point in points)
    figure, axes = charts.new_axes(len(models) * len(blocks), columns=len(blocks), panel=(3.6, 3.2))
    for number, axis in enumerate(axes):
        model, block = models[number // len(blocks)], blocks[number % len(blocks)]
        _panel(axis, panels.get((model, block), {}), backends)
        axis.set_title(f"{model}, block {block}", fontsize=9, color=charts.INK)
        axis.set_ylim(0, 1.1 * highest)  # one scale: panels are read beside one another
        axis.set_xlabel("L, clean tokens a sequence")
    for axis in axes[:: len(blocks)]:
        axis.set_ylabel("BD3-LM step / CARD step")
    charts.legend(axes[0])
    figure.suptitle(f"{device}\nmedians of paired rounds, 95 % bootstrap intervals", fontsize=9, color=charts.INK)
    charts.save(figure, path)


def _panel(axis: Any, panel: dict[str, list[Point]], backends: list[str]) -> None:
    for number, backend in enumerate(backends):
        points = panel.get(backend, [])
        if points:
            bars = [[p.median - p.low for p in points], [p.high - p.median for p in points]]
            style = {"color": charts.colour(number), "marker": charts.marker(number), "markersize": 4, "capsize": 3}
            axis.errorbar([p.length for p in points], [p.median for p in points], yerr=bars, label=backend, **style)
    reference = next(iter(panel.values()), [])
    lengths = [p.length for p in reference]
    axis.plot(lengths, [p.by_flops for p in reference], color=charts.MUTED, linestyle="--", label="ratio of FLOPs")
    if lengths:
        charts.value_ticks(axis.xaxis, lengths)
