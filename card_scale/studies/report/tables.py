"""The tables of the report. A bound is called one wherever it stands, and never ranked with an exact loss."""

import math
from collections.abc import Sequence

from card_scale.laws import columns
from card_scale.laws.fit_report import judge_crossover
from card_scale.laws.verdict import interval_text
from card_scale.studies.report import compared
from card_scale.studies.report.compared import Panel, seeds_text
from card_scale.studies.report.figures import panel_title
from card_scale.studies.report.finished_runs import Difference, Point, Study, difference, shared
from card_scale.studies.report.fitted_laws import Crossed
from card_scale.studies.report.html_parts import listed, note, table, text
from card_scale.studies.report.readings import named

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


def lowest(study: Study) -> str:
    """Return the lowest final loss of each arm, exact and bounded apart, by size and subset."""
    blocks = []
    for one in compared.panels(study):
        for bound in (False, True):
            arms = [arm for arm in one.points if study.is_bound(arm) == bound]
            if arms:
                kind = "upper bounds" if bound else "exact likelihood"
                title = f"{panel_title(one.size, one.unique)}, {kind}"
                blocks.append(f"<h3>{text(title)}</h3>{table(_lowest_rows(study, one, arms), title)}")
    rule = (
        "On the seeds that the cells of all arms share, the same as in the figures; an arm that lacks them stands "
        "with its own, and is compared with none. The most suitable number of epochs and setting are chosen on the "
        "validation set."
    )
    return note(rule) + "".join(blocks)


def _lowest_rows(study: Study, one: Panel, arms: Sequence[str]) -> list[list[str]]:
    rows = [["arm", "loss", "spread", "seeds", "at epochs", "setting"]]
    for arm in sorted(arms, key=lambda name: one.lowest(name).loss):
        point = one.lowest(arm)
        rows.append([named(study, arm), *_point(point), f"{point.first.epochs:.4g}", point.first.setting.describe()])
    return rows


def differences(study: Study, base: str) -> str:
    """Return each arm's loss minus the base's at equal epochs, both at their best settings, paired by seed.

    Where the base is a bound, nothing is said of which is better: a bound minus a bound bounds no difference.
    """
    base_is_bound = study.is_bound(base)
    exact = [["arm", "size", "U", "epochs", "difference", "deviation", "seeds"]]
    bounds = [[*exact[0], "what it says"]]
    for size, unique in study.panels():
        reference = {point.first.tokens: point for point in study.best_points(base, size, unique)}
        for arm in (other for other in study.arms if other != base):
            for point in study.best_points(arm, size, unique):
                other = reference.get(point.first.tokens)
                found = difference(point, other) if other else None
                if other is None or found is None:
                    continue
                seeds = point.seeds & other.seeds
                row = [named(study, arm), size, f"{unique:,.0f}", f"{point.first.epochs:.4g}", *_difference(found)]
                row.append(_seed_list(seeds))
                if study.is_bound(arm) and not base_is_bound:
                    better = (
                        f"better by at least {-found.mean:.4f}" if found.mean < 0 else "nothing: the bound is above"
                    )
                    row[4] = f"≤ {row[4]}"
                    bounds.append([*row, better])
                else:
                    exact.append(row)
    negative = (
        "These are differences of upper bounds: their signs do not say which model is better."
        if base_is_bound
        else f"Negative: better than {base}."
    )
    said = note(
        f"A seed chooses the subset, the order and the weights: arms of one seed have trained on the same tokens. "
        f"{negative} Each row takes the seeds that both cells have, and names them."
    )
    kind = "bounds" if base_is_bound else "losses"
    none = note("No other arm." if base_is_bound else "No other arm of exact losses.")
    tables = table(exact, f"{kind} minus those of {base}") if len(exact) > 1 else none
    if len(bounds) > 1:
        tables += note(
            "Upper bounds against exact losses: the true difference is at most the one below, so only a negative one "
            "says something."
        ) + table(bounds, f"bounds minus the losses of {base}")
    return said + tables


def _difference(found: Difference) -> tuple[str, str]:
    return f"{found.mean:+.4f}", "-" if found.deviation is None else f"{found.deviation:.4f}"


def _point(point: Point) -> list[str]:
    low, high = point.spread
    error = point.first.standard_error
    noise = f" ± {error:.3f}" if error else ""
    spread = f"{low:.4f} to {high:.4f}" if len(point.runs) > 1 else "-"
    sign = "≤ " if point.first.bound else ""
    return [f"{sign}{point.loss:.4f}{noise}", spread, _seed_list(point.seeds)]


def _seed_list(seeds: frozenset[str]) -> str:
    return seeds_text(seeds).partition(" ")[2]


def cells(study: Study) -> str:
    """Return every cell at every setting, with all its seeds."""
    rows = [["arm", "size", "U", "epochs", "setting", "loss", "spread", "seeds", "gap", "lowest in course", "FLOPs"]]
    for size, unique in study.panels():
        for arm in study.arms:
            for point in study.points(arm, size, unique):
                gap, best = point.mean("gap"), point.mean("best_loss")
                rows.append(
                    [
                        named(study, arm),
                        size,
                        f"{unique:,.0f}",
                        f"{point.first.epochs:.4g}",
                        point.first.setting.describe(),
                        *_point(point),
                        "-" if gap is None else f"{gap:.4f}",
                        "-" if best is None else f"{'≤ ' if point.first.bound else ''}{best:.4f}",
                        f"{point.first.flops:.3g}",
                    ]
                )
    return note("Means over all seeds of a cell; a comparison of cells takes the seeds that they share.") + table(
        rows, "all cells"
    )


def crossovers(study: Study, crossed: Sequence[Crossed]) -> str:
    """Return where each arm falls below each base for good."""
    if not crossed:
        return note("The study has one arm.")
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
        judged = judge_crossover(one.found)
        ends = interval_text(judged.low, judged.high)
        covered = f"{one.found.first:.3g} to {one.found.last:.3g}"
        rows.append([named(study, one.challenger), one.base, f"{one.unique:,.0f}", at, ends, judged.verdict, covered])
    bounds = dict.fromkeys(one.challenger for one in crossed if study.is_bound(one.challenger))
    notes += [f"{arm}: the crossover of its upper bound; its loss may cross earlier." for arm in bounds]
    said = note(
        "Lowest loss for at most so much compute, all sizes together, on the seeds of the figures. Only what is "
        "identified is a crossover to quote."
    )
    return said + (table(rows, "crossovers") if len(rows) > 1 else "") + listed(notes)


def unfinished(study: Study) -> str:
    """Return the runs that are not done, with the reason."""
    if not study.unfinished:
        return "<p>None.</p>"
    rows = [["run", "status", "code", "reason"]]
    for row in study.unfinished:
        given = row.cells
        rows.append([given[columns.RUN], given[columns.STATUS], given.get("exit_code", ""), given.get("reason", "")])
    return table(rows, "runs that are not done")


def settings(study: Study) -> str:
    """Return what all runs share."""
    found = shared(study)
    names = [name for name in _SETTINGS_SHOWN if found.get(name)]
    names += sorted(name for name, value in found.items() if "." in name and value)
    return table([["key", "value"], *([name, str(found[name])] for name in names)], "settings that all runs share")
