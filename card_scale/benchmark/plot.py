"""The figure of the benchmark: block diffusion's step over CARD's, by length, block and backend."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
    # Imported only here: it takes a second, and no other part of a measurement needs it.
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = lines(results)
    if not panels:
        raise ConfigurationError("no figure to draw: the results hold no bd3lm arm beside card; give --arms card bd3lm")
    blocks = sorted({block for _, block in panels})
    models = list(dict.fromkeys(model for model, _ in panels))
    backends = list(dict.fromkeys(backend for panel in panels.values() for backend in panel))
    size = (max(6.0, 1.0 + 3.2 * len(blocks)), 1.4 + 3.0 * len(models))
    figure, axes = pyplot.subplots(len(models), len(blocks), figsize=size, sharex=True, sharey=True, squeeze=False)
    for row, model in enumerate(models):
        for column, block in enumerate(blocks):
            _panel(axes[row][column], panels.get((model, block), {}), backends)
            axes[row][column].set_title(f"{model}, block {block}", fontsize=9)
        axes[row][0].set_ylabel("BD3-LM step / CARD step")
    for axis in axes[-1]:
        axis.set_xlabel("L, clean tokens a sequence")
    axes[0][0].legend(fontsize=8)
    figure.suptitle(f"{device}\nmedians of paired rounds, 95 % bootstrap intervals", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _panel(axis: Any, panel: dict[str, list[Point]], backends: list[str]) -> None:
    for number, backend in enumerate(backends):
        points = panel.get(backend, [])
        if points:
            bars = [[p.median - p.low for p in points], [p.high - p.median for p in points]]
            style = {"color": f"C{number}", "marker": "o", "markersize": 4, "capsize": 3, "label": backend}
            axis.errorbar([p.length for p in points], [p.median for p in points], yerr=bars, **style)
    reference = next(iter(panel.values()), [])
    lengths = [p.length for p in reference]
    axis.plot(lengths, [p.by_flops for p in reference], color="grey", linestyle="--", label="ratio of FLOPs")
    axis.set_xscale("log", base=2)
    axis.set_xticks(lengths, [str(length) for length in lengths])
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
