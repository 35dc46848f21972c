"""The report as one self-contained HTML page."""

import base64
import html
import math
from collections.abc import Sequence
from pathlib import Path

from card_scale.laws import columns
from card_scale.laws.fit_report import judge_crossover
from card_scale.studies.report.figures import Missing
from card_scale.studies.report.finished_runs import Point, Study, difference, shared
from card_scale.studies.report.fitted_laws import Crossed, Fitted, fit_text

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-size: 13px; margin: 0.5rem 0 1.5rem; }
th, td { padding: 2px 10px 2px 0; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0 2rem; } figure img { max-width: 100%; } figcaption, .note { color: #555; font-size: 13px; }
pre { background: #f6f6f6; padding: 0.8rem; overflow-x: auto; font-size: 12px; }
"""

_SETTINGS_SHOWN = (
    "vocabulary_size",
    "schedule",
    "lr",
    "weight_decay",
    "dropout",
    "data_digest",
    columns.TOKENIZER,
    columns.VALIDATION,
    "validation_tokens",
    columns.DECONTAMINATED,
    "commit",
    "device",
    "python",
    "version_torch",
    "version_deepspeed",
    "version_megatron_core",
)


class Drawn:
    """A figure on disk with its words."""

    def __init__(self, title: str, caption: str, path: Path):
        self.title, self.caption, self.path = title, caption, path


def page(
    title: str,
    study: Study,
    drawn: Sequence[Drawn | Missing],
    fitted: Sequence[Fitted],
    crossed: Sequence[Crossed],
    bases: Sequence[str],
    source: str,
) -> str:
    """Return the page; ``bases`` are the arms that the others are compared with."""
    parts = [
        f"<h1>{_text(title)}</h1>",
        f"<p>{len(study.runs)} finished runs and {len(study.unfinished)} others, of {len(study.arms)} arms; from "
        f"<code>{_text(source)}</code>.</p>",
        "<h2>What to keep in mind</h2>",
        _list(caveats(study, fitted)),
        "<h2>Lowest loss of each arm</h2>",
        _best(study),
        *(f"<h2>Against {_text(base)}, seed by seed</h2>{_differences(study, base)}" for base in bases),
        "<h2>Figures</h2>",
        *(_figure(one) for one in drawn),
        "<h2>Crossovers</h2>",
        _crossovers(study, crossed),
        "<h2>Laws</h2>",
        *(f"<h3>{_text(one.arm)}</h3><pre>{_text(fit_text(one))}</pre>" for one in fitted),
        "<p class=note>No law was asked for.</p>" if not fitted else "",
        "<h2>All cells</h2>",
        _cells(study),
        "<h2>Runs that are not done</h2>",
        _unfinished(study),
        "<h2>Settings that all runs share</h2>",
        _settings(study),
    ]
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{_text(title)}</title><style>{_STYLE}</style>"
    return head + "\n".join(part for part in parts if part) + "</html>\n"


def caveats(study: Study, fitted: Sequence[Fitted]) -> list[str]:
    """Return what a reader must know before quoting a number of this study."""
    said = []
    bounds = [arm for arm in study.arms if study.is_bound(arm)]
    exact = [arm for arm in study.arms if arm not in bounds]
    if bounds and exact:
        said.append(
            f"The losses of {', '.join(bounds)} are estimated upper bounds, those of {', '.join(exact)} exact "
            "likelihoods. They are not ranked with one another: a bound below an exact loss shows a better model, a "
            "bound above it shows nothing."
        )
    points = [p for arm in study.arms for panel in study.panels() for p in study.best_points(arm, *panel)]
    alone = sum(len(point.runs) == 1 for point in points)
    if alone:
        said.append(f"{alone} of {len(points)} cells have one seed: differences there may be noise.")
    deviations = [point.deviation for point in points if point.deviation is not None]
    if deviations:
        said.append(
            f"Standard deviation over seeds, where there are several: {min(deviations):.3g} to "
            f"{max(deviations):.3g} nats."
        )
    if any(
        len(study.points(arm, *panel)) > len(study.best_points(arm, *panel))
        for arm in study.arms
        for panel in study.panels()
    ):
        said.append(
            "Where a cell was trained with several settings, the one of lowest validation loss is shown. That choice "
            "uses the validation set, which flatters the arms with more settings."
        )
    if study.unfinished:
        said.append(f"{len(study.unfinished)} runs are not done. They are listed below and enter no figure.")
    unknown = {
        one.arm: one.analysis.unidentified()
        for one in fitted
        if one.analysis is not None and one.analysis.unidentified()
    }
    for arm, names in unknown.items():
        said.append(f"The law of {arm}: {', '.join(names)} not identified by these runs.")
    if not study.decontaminated:
        said.append(
            "The held-out documents were not compared with the training documents: copies of what was trained on may "
            "make repetition look better than it is (tools/data.py decontaminate)."
        )
    sizes = {run.parameters for run in study.runs}
    said.append(
        f"Sizes from {min(sizes):,.0f} to {max(sizes):,.0f} parameters (embeddings included) and "
        f"{max(run.flops for run in study.runs):.2g} FLOPs at most: nothing here says how larger models behave."
    )
    return said


def _best(study: Study) -> str:
    """Return the lowest final loss of each arm, exact and bounded apart, by size and subset."""
    blocks = []
    for size, unique in study.panels():
        for bound in (False, True):
            ranked: list[tuple[str, Point]] = []
            for arm in study.arms:
                points = study.best_points(arm, size, unique)
                if points and study.is_bound(arm) == bound:
                    ranked.append((arm, min(points, key=lambda point: point.loss)))
            if ranked:
                kind = "upper bounds" if bound else "exact likelihood"
                rows = [["arm", "loss", "seeds", "spread", "at epochs", "setting"]]
                for arm, point in sorted(ranked, key=lambda item: item[1].loss):
                    rows.append([arm, *_point(point), f"{point.first.epochs:.4g}", point.first.setting.describe()])
                blocks.append(f"<h3>{_text(size)}, U = {unique:,.0f}, {kind}</h3>{_table(rows)}")
    return "".join(blocks)


def _differences(study: Study, base: str) -> str:
    """Return each arm's loss minus the base's at equal epochs, both at their best settings, paired by seed."""
    rows = [["arm", "size", "U", "epochs", "difference", "deviation over seeds", "seeds"]]
    for size, unique in study.panels():
        reference = {point.first.tokens: point for point in study.best_points(base, size, unique)}
        for arm in (other for other in study.arms if other != base):
            for point in study.best_points(arm, size, unique):
                found = difference(point, reference[point.first.tokens]) if point.first.tokens in reference else None
                if found:
                    name = f"{arm} (bound)" if study.is_bound(arm) else arm
                    deviation = "-" if found.deviation is None else f"{found.deviation:.4f}"
                    where = [name, size, f"{unique:,.0f}", f"{point.first.epochs:.4g}"]
                    rows.append([*where, f"{found.mean:+.4f}", deviation, str(found.seeds)])
    note = "A seed chooses the subset, the order and the weights: arms of one seed have trained on the same tokens."
    return f"<p class=note>{note} Negative: better than {_text(base)}.</p>{_table(rows)}"


def _point(point: Point) -> list[str]:
    low, high = point.spread
    error = point.first.standard_error
    noise = f" ± {error:.3f}" if error else ""
    spread = f"{low:.4f} to {high:.4f}" if len(point.runs) > 1 else "-"
    return [f"{point.loss:.4f}{noise}", str(len(point.runs)), spread]


def _cells(study: Study) -> str:
    rows = [["arm", "size", "U", "epochs", "setting", "loss", "seeds", "spread", "gap", "lowest in course", "FLOPs"]]
    for size, unique in study.panels():
        for arm in study.arms:
            for point in study.points(arm, size, unique):
                gap, best = point.mean("gap"), point.mean("best_loss")
                rows.append(
                    [
                        f"{arm} (bound)" if study.is_bound(arm) else arm,
                        size,
                        f"{unique:,.0f}",
                        f"{point.first.epochs:.4g}",
                        point.first.setting.describe(),
                        *_point(point),
                        "-" if gap is None else f"{gap:.4f}",
                        "-" if best is None else f"{best:.4f}",
                        f"{point.first.flops:.3g}",
                    ]
                )
    return _table(rows)


def _crossovers(study: Study, crossed: Sequence[Crossed]) -> str:
    if not crossed:
        return "<p class=note>The study has one arm.</p>"
    rows = [["falls below", "against", "U", "at FLOPs", "95 % interval", "verdict", "compared over"]]
    notes = []
    for one in crossed:
        if one.found is None:
            notes.append(f"{one.challenger} against {one.base}, U = {one.unique:,.0f}: {one.reason}")
            continue
        at = "throughout" if one.found.compute == 0 else f"{one.found.compute:.3g}"
        if math.isinf(one.found.compute):
            at = "not within the runs"
        if one.found.carried:
            notes.append(
                f"{one.base}, U = {one.unique:,.0f}: its runs of most compute are not its best; beyond them its lowest "
                f"loss stands for it against {one.challenger}."
            )
        name = f"{one.challenger} (bound)" if study.is_bound(one.challenger) else one.challenger
        ends = f"{one.found.low:.3g} to {one.found.high:.3g}"
        covered = f"{one.found.first:.3g} to {one.found.last:.3g}"
        rows.append([name, one.base, f"{one.unique:,.0f}", at, ends, judge_crossover(one.found).verdict, covered])
    table = _table(rows) if len(rows) > 1 else ""
    return f"<p class=note>Lowest loss for at most so much compute, all sizes together.</p>{table}{_list(notes)}"


def _unfinished(study: Study) -> str:
    if not study.unfinished:
        return "<p>None.</p>"
    rows = [["run", "status", "code", "reason"]]
    for row in study.unfinished:
        cells = row.cells
        reason = cells.get("reason", "")
        rows.append([cells[columns.RUN], cells[columns.STATUS], cells.get("exit_code", ""), reason])
    return _table(rows)


def _settings(study: Study) -> str:
    found = shared(study)
    names = [name for name in _SETTINGS_SHOWN if found.get(name)]
    names += sorted(name for name, value in found.items() if "." in name and value)
    return _table([["key", "value"], *([name, str(found[name])] for name in names)])


def _figure(one: Drawn | Missing) -> str:
    if isinstance(one, Missing):
        return f"<h3>{_text(one.title)}</h3><p class=note>Left out: {_text(one.reason)}.</p>"
    encoded = base64.b64encode(one.path.read_bytes()).decode()
    image = f'<img alt="{_text(one.title)}" src="data:image/png;base64,{encoded}">'
    return f"<h3>{_text(one.title)}</h3><figure>{image}<figcaption>{_text(one.caption)}</figcaption></figure>"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = ["<tr>" + "".join(f"<th>{_text(cell)}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in body]
    return f"<table>{''.join(lines)}</table>"


def _list(items: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{_text(item)}</li>' for item in items)}</ul>" if items else ""


def _text(text: str) -> str:
    return html.escape(str(text))
