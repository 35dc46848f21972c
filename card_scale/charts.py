"""How the figures of this project look: colours, markers, ticks that can be read, and names at the ends of lines."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

INK, MUTED, GRID, PAPER = "#1f2328", "#5c6570", "#d5dbe1", "#fefefe"

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", INK)
"""Okabe and Ito's, which colour-blind readers tell apart, without yellow and with brown; further series begin anew,
with other markers."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")

BOUND_DASHES = (0, (5, 2))
"""Of the line of an upper bound, everywhere; exact losses are solid."""

_PANEL = (4.6, 3.6)
_MOST_COLUMNS = 3
_MOST_TICKS = 5
_NEAREST_TICKS = 0.085
"""Share of an axis between two labelled ticks."""
_LABEL_POINTS = 7.5


Point = TypeVar("Point")


class End(NamedTuple):
    """The end of a line and its name."""

    x: float
    y: float
    text: str
    colour: str


def colour(number: int) -> str:
    """Return the colour of a series."""
    return COLOURS[number % len(COLOURS)]


def marker(number: int) -> str:
    """Return the marker of a series; with the colour it tells as many apart as the product of both."""
    return MARKERS[number % len(MARKERS)]


def new_axes(count: int, columns: int = _MOST_COLUMNS, panel: tuple[float, float] = _PANEL) -> tuple[Any, list[Any]]:
    """Return a matplotlib figure and its ``count`` axes, each of a ``panel``'s width and height in inches."""
    # Imported only here: it takes a second, and a tool's --help must answer at once.
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(count, columns)
    rows = -(-count // columns)
    size = (panel[0] * columns, panel[1] * rows)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", facecolor=PAPER)
    flat = list(axes.ravel())
    for axis in flat[count:]:
        axis.set_axis_off()
    for axis in flat[:count]:
        _plain(axis)
    return figure, flat


def _plain(axis: Any) -> None:
    axis.set_facecolor(PAPER)
    axis.spines[["top", "right"]].set_visible(False)
    for spine in axis.spines.values():
        spine.set_color(MUTED)
    axis.tick_params(colors=MUTED, labelcolor=INK, labelsize=8)
    axis.grid(color=GRID, linewidth=0.6)
    axis.set_axisbelow(True)
    for text in (axis.xaxis.label, axis.yaxis.label, axis.title):
        text.set_color(INK)
        text.set_fontsize(9)


def save(figure: Any, path: Path) -> None:
    """Write a figure as the file's ending says, and close it."""
    from matplotlib import pyplot

    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def legend(axis: Any, **keys: Any) -> None:
    """Draw a legend that covers nothing it need not."""
    axis.legend(fontsize=7.5, frameon=False, labelcolor=INK, **keys)


def value_ticks(axis: Any, values: Sequence[float], write: Callable[[float], str] = "{:g}".format) -> None:
    """Give an x or y axis (``axes.xaxis``) of logarithms the values that were measured as ticks, those that fit."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    placed = sorted({float(value) for value in values})
    span = math.log(placed[-1] / placed[0]) or 1.0
    shown: list[float] = []
    for value in placed:
        if not shown or math.log(value / shown[-1]) / span >= _NEAREST_TICKS:
            shown.append(value)
    _set_ticks(axis, shown, [write(value) for value in shown])


def log_ticks(axis: Any) -> None:
    """Give an x or y axis of logarithms few ticks: powers of ten, or where it spans less than two, round numbers.

    To be called once the limits stand.
    """
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = axis.get_view_interval()
    ticks = ticks_between(float(low), float(high))
    _set_ticks(axis, ticks, [number_text(tick) for tick in ticks])
    axis.set_view_interval(low, high, ignore=True)


def ticks_between(low: float, high: float) -> list[float]:
    """Return at most a handful of ticks for an axis of logarithms from ``low`` to ``high``, both positive."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    if last - first >= 2:
        step = -(-(last - first) // (_MOST_TICKS - 1))
        return [10.0**power for power in range(first, last + 1, step)]
    for leading in ((1, 3), (1, 2, 5), range(1, 10), [number / 10 for number in range(10, 100)]):
        places = [head * 10.0**power for power in range(first - 2, last + 2) for head in leading]
        found = [place for place in sorted(set(places)) if low <= place <= high]
        if len(found) >= 3:
            return found[:: -(-len(found) // _MOST_TICKS)]
    middle = math.sqrt(low * high)
    return [float(f"{end:.3g}") for end in (low, middle, high)] if high / low > 1.02 else [float(f"{middle:.3g}")]


def number_text(value: float) -> str:
    """Return a tick's label: plain where it is short, else with a power of ten."""
    if 1e-3 <= value < 1e5:
        return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
    power = math.floor(math.log10(value) + 1e-9)
    head = f"{value / 10.0**power:.3g}"
    return f"$10^{{{power}}}$" if head == "1" else rf"${head}\times10^{{{power}}}$"


def _set_ticks(axis: Any, places: Sequence[float], labels: Sequence[str]) -> None:
    from matplotlib.ticker import NullLocator

    axis.set_ticks(places, labels)
    axis.set_minor_locator(NullLocator())


def name_ends(axis: Any, ends: Sequence[End]) -> None:
    """Write each line's name to the right of its end, moved up or down where two would overlap.

    To be called once all is drawn: it widens the panel to the right for the names.
    """
    if not ends:
        return
    low, high = axis.get_ylim()
    axis.set_ylim(low, high)
    points = axis.figure.get_size_inches()[1] * 72.0 * 0.75 / axis.get_subplotspec().get_gridspec().nrows
    line = 1.25 * _LABEL_POINTS / points
    heights = spread([(end.y - low) / (high - low) for end in ends], line)
    for end, height in zip(ends, heights, strict=True):
        axis.annotate(
            end.text,
            (end.x, end.y),
            xytext=(1.02, height),
            textcoords="axes fraction",
            color=end.colour,
            fontsize=_LABEL_POINTS,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": end.colour, "linewidth": 0.5, "alpha": 0.6, "shrinkB": 3},
        )


def front(points: Sequence[Point], costs: Callable[[Point], tuple[float, float]]) -> list[Point]:
    """Return the points that no other beats in both costs, by ascending first cost; of equal ones the first."""
    best: list[Point] = []
    for one in sorted(points, key=costs):
        if not best or costs(one)[1] < costs(best[-1])[1]:
            best.append(one)
    return best


def spread(wanted: Sequence[float], distance: float) -> list[float]:
    """Return places in [0, 1] as near to the wanted ones as a least distance between neighbours allows.

    Their order is kept. Where there are too many, they stand as far apart as the interval allows.
    """
    distance = min(distance, 1.0 / max(1, len(wanted) - 1))
    order = sorted(range(len(wanted)), key=lambda number: wanted[number])
    groups: list[list[float]] = []  # the wanted places of neighbours that touch, each less its rank times the distance
    for number in order:
        groups.append([wanted[number]])
        while len(groups) > 1 and _start(groups[-2]) + len(groups[-2]) * distance > _start(groups[-1]):
            last = groups.pop()
            groups[-1] += [place - len(groups[-1]) * distance for place in last]
    places: list[float] = []
    for group in groups:
        places += [_start(group) + rank * distance for rank in range(len(group))]
    for rank in range(len(places)):
        places[rank] = max(places[rank], places[rank - 1] + distance if rank else 0.0)
    for rank in reversed(range(len(places))):
        limit = places[rank + 1] - distance if rank + 1 < len(places) else 1.0
        places[rank] = min(places[rank], limit)
    found = [0.0] * len(wanted)
    for place, number in zip(places, order, strict=True):
        found[number] = place
    return found


def _start(group: Sequence[float]) -> float:
    """Return the place of a group's first member that is nearest to all that they want."""
    return sum(group) / len(group)
