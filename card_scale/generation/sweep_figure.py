"""The front of speed and quality of a decoding sweep, as a figure."""

from collections.abc import Sequence
from pathlib import Path

from card_scale import charts
from card_scale.generation.sweep import Outcome

COLOURS = {
    "ar": "#000000",
    "self_verified": "#0072b2",
    "card": "#d55e00",
    "bd3lm": "#009e73",
    "mdlm": "#cc79a7",
    "armd_strided": "#e69f00",
}
"""Okabe and Ito's, which colour-blind readers tell apart."""
MARKERS = {"ar": "s", "self_verified": "o", "card": "^", "bd3lm": "D", "mdlm": "v", "armd_strided": "P"}


def front(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those that no other beats in speed and quality at once, the slowest first."""
    return charts.front(outcomes, lambda outcome: (cost(outcome), -outcome.speedup))


def cost(outcome: Outcome) -> float:
    """What less of is better: the judge's nats, or without one the share of tokens that differ."""
    return 1.0 - outcome.agreement if outcome.judged_nats is None else outcome.judged_nats


def draw(outcomes: Sequence[Outcome], safe: Sequence[bool], path: Path) -> None:
    """Write the figure; settings in the safe zone are filled, the front is joined by a line and labelled."""
    figure, (axes,) = charts.new_axes(1, panel=(8.0, 5.0))
    best = front(outcomes)
    axes.plot([one.speedup for one in best], [cost(one) for one in best], color=charts.MUTED, linewidth=1, zorder=1)
    for method, colour in COLOURS.items():
        points = [(one, is_safe) for one, is_safe in zip(outcomes, safe, strict=True) if one.setting.method == method]
        if points:
            axes.scatter(
                [one.speedup for one, _ in points],
                [cost(one) for one, _ in points],
                marker=MARKERS[method],
                facecolors=[colour if is_safe else "none" for _, is_safe in points],
                edgecolors=colour,
                label=method,
                zorder=2,
            )
    axes.set_xlabel("speed over one token a pass (same batch size)")
    judged = outcomes[0].judged_nats is not None
    axes.set_ylabel("nats per token under the judge" if judged else "share of tokens behind the first difference")
    charts.legend(axes, title="filled: safe zone", title_fontsize=7.5)
    charts.name_ends(
        axes, [charts.End(one.speedup, cost(one), one.setting.label, COLOURS[one.setting.method]) for one in best]
    )
    charts.save(figure, path)
