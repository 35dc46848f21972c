"""Figures as SVG inside a page, in the colours of the page's theme: light, dark or print."""

import io
import re
from html import escape
from typing import Any

from card_scale import charts

VARIABLES = {
    charts.INK: "--ink",
    charts.MUTED: "--muted",
    charts.GRID: "--grid",
    charts.PAPER: "--paper",
    **{colour: f"--series-{number}" for number, colour in enumerate(charts.COLOURS) if colour != charts.INK},
}
"""The page's variable for each colour of a figure."""

_DARK = {
    "--ink": "#e8ecf0",
    "--muted": "#9aa5b1",
    "--grid": "#333b44",
    "--paper": "#15191e",
    "--series-0": "#6ea4ff",
    "--series-1": "#f58231",
    "--series-2": "#2fc79b",
    "--series-3": "#e3a4c9",
    "--series-4": "#f2b632",
    "--series-5": "#9fdcff",
    "--series-6": "#c9a86a",
}


def theme(dark: bool) -> str:
    """Return the declarations of the variables."""
    light = {name: colour for colour, name in VARIABLES.items()}
    return "; ".join(f"{name}: {colour}" for name, colour in (_DARK if dark else light).items())


def inline(figure: Any, label: str, prefix: str) -> str:
    """Return a matplotlib figure as an ``svg`` element that fills its box, and close it.

    Args:
        figure: the figure, drawn in the colours of :mod:`card_scale.charts`.
        label: what it shows, for who cannot see it.
        prefix: of its ids, unlike that of any other figure of the page.
    """
    from matplotlib import pyplot, rc_context

    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    pyplot.close(figure)
    svg = text.getvalue()
    svg = " ".join(svg[svg.index("<svg") :].split())  # matplotlib writes a line for each point
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}-", svg)
    for colour, name in VARIABLES.items():
        svg = svg.replace(colour, f"var({name})")
    head, _, rest = svg.partition(">")
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{escape(label)}">{rest}'
