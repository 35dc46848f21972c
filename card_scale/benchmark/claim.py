"""What operations say of the claim that CARD trains three times faster than block diffusion, beside measurements."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from card_scale import charts
from card_scale.benchmark.ratio_figure import Point, measured
from card_scale.config import ModelConfig
from card_scale.cost.flops import training_work
from card_scale.errors import DataError
from card_scale.objectives.attention import BlockDiffusion, Causal

LONGEST = 2**20
"""Length up to which a ratio is looked for."""


class Counted(NamedTuple):
    """Operations of a step of block diffusion over those of CARD's on the same clean tokens."""

    visible: float
    """Where attention costs what the mask leaves visible."""
    whole: float
    """Where the kernel works out the whole square of 2L x 2L and masks it afterwards."""


def counted(model: ModelConfig, length: int, block: int, vocabulary_rows: int) -> Counted:
    """Return both ratios for a model at a length."""
    sizes = replace(model, length=length)
    card = training_work(sizes, Causal(), vocabulary_rows).total
    visible, whole = (
        training_work(sizes, BlockDiffusion(block), vocabulary_rows, full=full).total / card for full in (False, True)
    )
    return Counted(visible, whole)


def first_length(model: ModelConfig, ratio: float, block: int, vocabulary_rows: int) -> int | None:
    """Return the least multiple of ``block`` at which the whole square costs ``ratio``; None if it is above LONGEST."""
    low, high = 0, LONGEST // block
    if counted(model, high * block, block, vocabulary_rows).whole < ratio:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        enough = counted(model, middle * block, block, vocabulary_rows).whole >= ratio
        low, high = (low, middle) if enough else (middle, high)
    return high * block


def table(
    models: Mapping[str, ModelConfig], lengths: Sequence[int], ratio: float, block: int, vocabulary_rows: int
) -> str:
    """Return the ratios as a table in Markdown, one line a model."""
    head = ["model", *(f"L {length:,}" for length in lengths), f"{ratio:g} from L"]
    rows = [head, ["---"] * len(head)]
    for name, model in models.items():
        ratios = [counted(model, length, block, vocabulary_rows) for length in lengths]
        found = first_length(model, ratio, block, vocabulary_rows)
        cells = [f"{both.visible:.2f} / {both.whole:.2f}" for both in ratios]
        rows.append([name, *cells, f"{found:,}" if found else "nowhere"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def by_model(
    results: Sequence[dict[str, Any]], block: int, models: Collection[str]
) -> dict[str, dict[str, list[Point]]]:
    """Return measured ratios of these models by model, and by backend, engine and whether layers are compiled.

    Raises DataError where there are results, but none of these models and this block.
    """
    found: dict[str, dict[str, list[Point]]] = {}
    for one in measured(results):
        if one.block == block and one.result["model"] in models:
            compiled = ", compiled" if one.result.get("compiled_layers") else ""
            label = f"{one.backend}, {one.result['engine']}{compiled}"
            found.setdefault(one.result["model"], {}).setdefault(label, []).append(one.point)
    if results and not found:
        held = sorted({f"{one.result['model']} with block {one.block}" for one in measured(results)})
        raise DataError(
            f"no result is of {', '.join(models)} with block {block}; there are: {', '.join(held) or 'none'}"
        )
    return found


def draw(
    models: Mapping[str, ModelConfig],
    lengths: Sequence[int],
    results: Sequence[dict[str, Any]],
    path: Path,
    *,
    ratio: float,
    block: int,
    vocabulary_rows: int,
) -> None:
    """Write the figure: a panel a model, operations as lines and measurements as points with their intervals."""
    figure, panels = charts.new_axes(len(models))
    points_of = by_model(results, block, models)
    for axis, (name, model) in zip(panels, models.items(), strict=True):
        ratios = [counted(model, length, block, vocabulary_rows) for length in lengths]
        axis.axhline(ratio, color=charts.MUTED, linewidth=0.8, linestyle=":")
        kinds = {"operations, what the mask shows": "visible", "operations, whole square of 2L x 2L": "whole"}
        for number, (label, kind) in enumerate(kinds.items()):
            axis.plot(lengths, [getattr(both, kind) for both in ratios], color=charts.colour(number), label=label)
        for number, (label, points) in enumerate(points_of.get(name, {}).items(), start=2):
            bars = [[p.median - p.low for p in points], [p.high - p.median for p in points]]
            style = {"color": charts.colour(number), "marker": charts.marker(number), "linestyle": "none"}
            xs, ys = [p.length for p in points], [p.median for p in points]
            axis.errorbar(xs, ys, yerr=bars, markersize=4, capsize=2, label=f"measured: {label}", **style)
        axis.set(title=name, xlabel="L, clean tokens a sequence", ylabel="BD3-LM step / CARD step")
        charts.value_ticks(axis.xaxis, lengths)
        charts.legend(axis, loc="upper left")
    top = max(axis.get_ylim()[1] for axis in panels)
    for axis in panels:
        axis.set_ylim(1.0, top)
    charts.save(figure, path)
