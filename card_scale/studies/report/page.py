"""The report as one self-contained HTML page: what came out, what limits it, figures beside their reading, tables."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from card_scale import charts
from card_scale.laws import fit_figures
from card_scale.studies.report import compared, readings, tables
from card_scale.studies.report.caveats import caveats
from card_scale.studies.report.figures import Figure, Missing
from card_scale.studies.report.finished_runs import Study
from card_scale.studies.report.fitted_laws import Crossed, Fitted, draw_fits, fit_text
from card_scale.studies.report.html_parts import listed, note, text
from card_scale.studies.report.inline_svg import inline, theme
from card_scale.studies.report.readings import named

_STYLE = f"""
:root {{ color-scheme: light dark; {theme(dark=False)}; --line: #d5dbe1; --soft: #f3f5f7; }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {theme(dark=True)}; --line: #333b44; --soft: #1e242b; }} }}
* {{ box-sizing: border-box; }}
body {{ font: 16px/1.55 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem;
  background: var(--paper); color: var(--ink); }}
h1 {{ line-height: 1.2; }} h2 {{ margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem; }}
h3 {{ margin: 1.5rem 0 0.3rem; font-size: 1rem; }}
p, li {{ max-width: 46rem; overflow-wrap: break-word; }}
.summary {{ font-size: 1.1rem; }} .note, figcaption {{ color: var(--muted); font-size: 0.85rem; }}
nav a {{ margin-right: 1rem; color: inherit; }}
.scroll {{ overflow-x: auto; margin: 0.4rem 0 1.2rem; max-width: 100%; }}
table {{ border-collapse: collapse; font-size: 0.82rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 3px 14px 3px 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }}
thead th {{ color: var(--muted); font-weight: 600; }} tbody th {{ font-weight: 400; }}
th:first-child {{ text-align: left; }}
figure {{ margin: 1rem 0 2rem; }}
.panels {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 29rem), 1fr)); gap: 1.2rem; }}
.panel h4 {{ margin: 0; font-size: 0.9rem; }}
.panel svg {{ width: 100%; height: auto; max-width: 36rem; display: block; }}
.panel ul {{ margin: 0.2rem 0; padding-left: 1.1rem; font-size: 0.85rem; }}
.single {{ grid-template-columns: minmax(0, 1fr); }}
.single .panel {{ display: grid; gap: 0 1.5rem; align-items: center;
  grid-template-columns: minmax(0, 36rem) minmax(0, 1fr); }}
.single .panel h4 {{ grid-column: 1 / -1; }}
.wide svg {{ max-width: none; }}
pre {{ background: var(--soft); padding: 0.8rem; overflow-x: auto; font-size: 0.75rem; }}
@media (max-width: 50rem) {{ .single .panel {{ grid-template-columns: minmax(0, 1fr); }} }}
@media print {{
  body {{ font-size: 10pt; margin: 0; max-width: none; }} nav {{ display: none; }}
  .panels:not(.single) {{ grid-template-columns: repeat(2, minmax(0, 1fr)); }}
  h2, h3, h4 {{ break-after: avoid; }} .panel, tr, .summary {{ break-inside: avoid; }}
  .scroll, pre {{ overflow: visible; }} pre {{ white-space: pre-wrap; }} table {{ font-size: 6.5pt; }}
  th, td {{ padding-right: 6px; white-space: normal; }}
}}
"""


class Compared(NamedTuple):
    """What the study's arms were compared with."""

    bases: Sequence[str]
    """Arms that the others are compared with."""
    crossed: Sequence[Crossed]


def page(
    title: str,
    study: Study,
    figures: Sequence[Figure | Missing],
    fitted: Sequence[Fitted],
    against: Compared,
    source: str,
) -> str:
    """Return the page, with the figures inside it."""
    panels = compared.panels(study)
    first, *others = figures
    sections = {
        first.title: _figure(first),
        "What to keep in mind": listed(caveats(study, fitted)),
        "Lowest loss of each arm": tables.lowest(study),
        "Further figures": "".join(f"<h3>{text(one.title)}</h3>{_figure(one)}" for one in others),
        **{f"Against {base}, seed by seed": tables.differences(study, base) for base in against.bases},
        "Crossovers": tables.crossovers(study, against.crossed),
        "Laws": _laws(study, fitted),
        "All cells": tables.cells(study),
        "Runs that are not done": tables.unfinished(study),
        "Settings that all runs share": tables.settings(study),
    }
    links = "".join(f'<a href="#s{number}">{text(name)}</a>' for number, name in enumerate(sections))
    body = [
        f"<h1>{text(title)}</h1>",
        f"<p class=summary>{' '.join(text(sentence) for sentence in readings.summary(study, panels))}</p>",
        f"<p class=note>From <code>{text(source)}</code>. Losses are nats per token on held-out text.</p>",
        f"<nav class=note>{links}</nav>",
        *(
            f'<section><h2 id="s{number}">{text(name)}</h2>{content}</section>'
            for number, (name, content) in enumerate(sections.items())
        ),
    ]
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{_STYLE}</style></head><body>"
    )
    return head + "\n".join(body) + "</body></html>\n"


def _figure(one: Figure | Missing) -> str:
    if isinstance(one, Missing):
        return note(f"Left out: {one.reason}.")
    panels = []
    for number, drawing in enumerate(one.drawings):
        figure, (axis,) = charts.new_axes(1, panel=(5.6, 3.7))
        drawing.draw(axis)
        svg = inline(figure, f"{one.title}: {drawing.title}", f"{one.name}{number}")
        panels.append(f"<div class=panel><h4>{text(drawing.title)}</h4>{svg}<div>{listed(drawing.reading)}</div></div>")
    kind = "panels single" if len(panels) == 1 else "panels"
    caption = f"<figcaption>{text(one.caption)}</figcaption>"
    return f"<figure><div class='{kind}'>{''.join(panels)}</div>{caption}</figure>"


def _laws(study: Study, fitted: Sequence[Fitted]) -> str:
    if not fitted:
        return note("No law was asked for.")
    drawn: dict[str, Any] = dict(draw_fits(list(fitted)))
    parts = [note("All seeds of each arm's best settings. Read a constant with its verdict and its interval.")]
    for number, one in enumerate(fitted):
        parts.append(f"<h3>{text(named(study, one.arm))}</h3>")
        if study.is_bound(one.arm):
            parts.append(note("The law of an upper bound, not of a loss."))
        parts.append(f"<pre>{text(fit_text(one))}</pre>")
        if one.arm in drawn:
            label = f"{one.arm}: profile likelihood, predicted against measured loss"
            svg = inline(drawn[one.arm], label, f"law{number}")
            parts.append(
                f"<figure class='panel wide'>{svg}<figcaption>{text(fit_figures.CAPTION)}</figcaption></figure>"
            )
    return "".join(parts)
