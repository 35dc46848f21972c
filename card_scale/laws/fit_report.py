"""An analysis as text for the terminal and as plain values for JSON."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from card_scale.laws.allocation import BudgetUse
from card_scale.laws.analysis import Analysis
from card_scale.laws.best_epochs import Optimum
from card_scale.laws.crossover import Crossover
from card_scale.laws.envelope import Envelope
from card_scale.laws.huber import DELTA, residuals
from card_scale.laws.isoflop import IsoFlops
from card_scale.laws.power_law import PowerLaw
from card_scale.laws.profile import Profile
from card_scale.laws.verdict import Judgement, Kind, Verdict, interval_text, judge


def text(analysis: Analysis, profiles: bool) -> str:
    """Return the report of a fit.

    Args:
        analysis: the fit and its verdicts.
        profiles: whether to list the points of the profiles.
    """
    found, runs = analysis.fit, analysis.fit.runs
    level = f"{100.0 * analysis.settings.level:g} %"
    error = residuals(found.form, found.best.logs, runs)
    lines = [
        f"{found.form.name} on {len(runs.loss)} runs: {runs.N.min():.3g} to {runs.N.max():.3g} parameters, "
        f"{runs.U.min():.3g} to {runs.U.max():.3g} unique tokens, {(runs.D / runs.U).min():.3g} to "
        f"{(runs.D / runs.U).max():.4g} epochs",
    ]
    if found.fixed:
        lines.append("given: " + ", ".join(f"{name} = {value:.6g}" for name, value in found.fixed.items()))
    lines += [
        f"objective {found.best.objective:.8g} (sum of Huber losses of log loss, delta {DELTA:g}), "
        f"R2 {found.r_squared():.4f}, root mean square error {100.0 * np.sqrt(np.mean(error**2)):.2g} %",
        "",
    ]
    drawn = "ladders" if analysis.by_ladder else "runs"
    table = [["constant", f"{level} interval", "profile", f"bootstrap of {drawn}", "at the minimum", "verdict"]]
    for one in analysis.judgements:
        resampled = "-" if one.bootstrap is None else interval_text(*one.bootstrap)
        intervals = interval_text(one.low, one.high), interval_text(*one.own), resampled
        table.append([one.name, *intervals, f"({one.estimate:.4g})", _verdict(one)])
    lines += [*_columns(table), ""]
    lines += _said(analysis)
    if len(found.modes) > 1:
        lines += ["", f"{len(found.modes)} distinct minima were found:"]
        rows = [["objective", *found.free]]
        for mode in found.modes:
            values = found.constants(mode)
            rows.append([f"{mode.objective:.8g}", *(f"{values[name]:.4g}" for name in found.free)])
        lines += _columns(rows)
    if analysis.extrapolation is not None:
        held = analysis.extrapolation
        lines += [
            "",
            f"Extrapolation: the {len(held.rows)} runs of the most compute held out ({held.asked} asked for, cells of "
            f"equal N, D and U taken whole), fitted up to {held.largest_fitted:.3g} FLOPs: "
            f"error {100.0 * held.outside:.2g} % (inside the fit {100.0 * held.inside:.2g} %), "
            f"bias {100.0 * held.bias:+.2g} %",
        ]
    if profiles:
        for curve, judged in zip(analysis.profiles, analysis.judgements, strict=True):
            lines += ["", *_profile_lines(curve, judged)]
    return "\n".join(lines)


def _profile_lines(curve: Profile, judged: Judgement) -> list[str]:
    """Return the points of a profile, and which of them lie in the interval that the report gives."""
    lines = [f"profile of {curve.name}: value, rise over the lowest / rise that rejects ({curve.rise:.3g})"]
    if judged.widened:
        lines.append(
            f"it rejects what lies outside {interval_text(*judged.own)}; the interval given is the bootstrap's too, "
            f"{interval_text(judged.low, judged.high)}"
        )
    rows = []
    for value, height in zip(curve.values, curve.objectives, strict=True):
        beside = "in the interval by the bootstrap" if _only_by_bootstrap(value, judged) else ""
        rows.append([f"{value:.5g}", f"{(height - curve.lowest) / curve.rise:.4g}", beside])
    return lines + _columns(rows)


def _only_by_bootstrap(value: float, judged: Judgement) -> bool:
    return judged.low <= value <= judged.high and not judged.own[0] <= value <= judged.own[1]


def _said(analysis: Analysis) -> list[str]:
    """Return the verdicts in sentences."""
    identified = [one.name for one in analysis.judgements if one.verdict is Verdict.IDENTIFIED]
    lines = [f"Identified by these runs: {', '.join(identified) or 'none'}."]
    if analysis.unidentified():
        lines.append(f"Not identified by these runs: {', '.join(analysis.unidentified())}. Do not quote their minimum:")
        lines += _reasons(analysis.judgements)
    pattern = analysis.pattern
    if pattern.found:
        lines.append(
            f"The pattern: {pattern.agreeing} of {pattern.pairs} neighbouring pairs of runs err to the same side "
            f"(p = {pattern.probability:.1g} by chance), so these intervals are those of a law that does not hold here."
        )
    return lines


def plain(analysis: Analysis, profiles: bool) -> dict[str, Any]:
    """Return the analysis as values for JSON; infinite numbers are the text ``inf``."""
    found = analysis.fit
    result: dict[str, Any] = {
        "form": found.form.name,
        "runs": len(found.runs.loss),
        "given": {name: number(value) for name, value in found.fixed.items()},
        "objective": number(found.best.objective),
        "r_squared": number(found.r_squared()),
        "level": analysis.settings.level,
        "settings": vars(analysis.settings),
        "constants": {
            one.name: judgement_plain(one)
            | {"bootstrap": None if one.bootstrap is None else [number(end) for end in one.bootstrap]}
            for one in analysis.judgements
        },
        "residual_pattern": {**analysis.pattern._asdict(), "found": analysis.pattern.found},
        "minima": [
            {
                "objective": mode.objective,
                **{name: number(value) for name, value in found.constants(mode).items() if name in found.free},
            }
            for mode in found.modes
        ],
    }
    if analysis.extrapolation is not None:
        held = analysis.extrapolation
        result["hold_out"] = {
            "runs": len(held.rows),
            "asked": held.asked,
            "rms_error": held.outside,
            "rms_error_inside": held.inside,
            "bias": held.bias,
            "largest_fitted_flops": held.largest_fitted,
        }
    if profiles:
        result["profiles"] = {
            one.name: {"values": one.values.tolist(), "objectives": one.objectives.tolist(), "rise": one.rise}
            for one in analysis.profiles
        }
    return result


def projection_text(analysis: Analysis, values: Mapping[str, float]) -> str:
    """Return how far another estimator moves the constants: not their values, which have no interval of their own.

    Args:
        analysis: of Chinchilla's law.
        values: what :func:`card_scale.laws.variable_projection.variable_projection` found for the same runs.
    """
    rows = [["constant", "times the minimum above", "inside its interval", "verdict above"]]
    for name, said in projection_plain(analysis, values).items():
        inside = "yes" if said["inside_interval"] else "NO"
        rows.append([name, f"{float(said['factor']):.4g}", inside, said["verdict"]])
    title = "the same law by least squares of relative errors (variable projection), to compare estimators:"
    return "\n".join(["", title, *_columns(rows)])


def projection_plain(analysis: Analysis, values: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Return the same for JSON: each constant's estimate beside the interval and the verdict of the fit."""
    return {
        one.name: {
            "at_minimum": values[one.name],
            "factor": number(values[one.name] / one.estimate if one.estimate else math.inf),
            "inside_interval": one.low <= values[one.name] <= one.high,
            "low": number(one.low),
            "high": number(one.high),
            "verdict": str(one.verdict),
        }
        for one in analysis.judgements
    }


def budgets_text(uses: Sequence[BudgetUse], unidentified: Sequence[str], level: float) -> str:
    """Return the best use of each budget; ``unidentified``: constants that the runs do not identify."""
    spread = "" if uses[0].intervals is None else f" [central {100.0 * level:g} % of the resamples]"
    rows = [["FLOPs", "parameters", "tokens", "epochs", "loss of the law", "budget over the runs' most"]]
    for one in uses:
        cells = [f"{value:.4g}" for value in one.best]
        if one.intervals is not None:
            cells = [f"{cell} [{low:.4g}, {high:.4g}]" for cell, (low, high) in zip(cells, one.intervals, strict=True)]
        size, tokens, loss = cells
        epochs = "-" if one.unique is None else f"{one.epochs:.3g} of {one.unique:.3g}"
        rows.append([f"{one.budget:.3g}", size, tokens, epochs, loss, f"{one.beyond:.3g}"])
    lines = ["", f"the best use of a budget C = 6 N D under this law{spread}:", *_columns(rows)]
    if unidentified:
        lines.append(
            f"It rests on constants that these runs do not identify ({', '.join(unidentified)}): no more than a guess."
        )
    return "\n".join(lines)


def budgets_plain(uses: Sequence[BudgetUse]) -> list[dict[str, Any]]:
    """Return the same for JSON."""
    found = []
    for one in uses:
        values = {name: number(value) for name, value in one.best._asdict().items()}
        intervals = one.intervals or (None, None, None)
        ends = {
            f"{name}_interval": None if interval is None else [number(end) for end in interval]
            for name, interval in zip(values, intervals, strict=True)
        }
        about = {"budget": one.budget, "unique": one.unique, "epochs": number(one.epochs), "beyond": one.beyond}
        found.append(about | values | ends)
    return found


def power_law_text(name: str, law: PowerLaw) -> str:
    """Return a power law: intervals and verdicts of its constants."""
    judgements = judge_power_law(law)
    rows = [["constant", "interval", "estimate", "verdict"]]
    for one in judgements:
        rows.append([one.name, interval_text(one.low, one.high), f"({one.estimate:.4g})", _verdict(one)])
    title = f"{name} = k times {' times '.join(f'a power of {factor}' for factor in law.exponents)}"
    return "\n".join([title, *_columns(rows), *_reasons(judgements)])


def judge_power_law(law: PowerLaw) -> list[Judgement]:
    """Return the verdict on k and on each exponent of a power law."""
    exponents = {f"exponent of {name}": one for name, one in law.exponents.items()}
    judged = [judge("k", Kind.AMPLITUDE, law.k.value, (law.k.low, law.k.high))]
    return judged + [judge(name, Kind.EXPONENT, one.value, (one.low, one.high)) for name, one in exponents.items()]


def envelope_text(found: Envelope) -> str:
    """Return the report of approach 1."""
    return (
        f"approach 1, envelope of loss curves: {found.curves} sizes are best somewhere; bootstrap over sizes\n"
        f"{power_law_text('N_opt', found.sizes)}"
    )


def isoflops_text(found: IsoFlops) -> str:
    """Return the report of approach 2."""
    rows = [["FLOPs", "N_opt", "D_opt", "loss", "runs"]]
    for valley in found.valleys:
        numbers = (valley.compute, valley.parameters, valley.tokens)
        rows.append([*(f"{value:.4g}" for value in numbers), f"{valley.loss:.4f}", str(valley.runs)])
    return "\n".join(
        [
            "approach 2, parabola for each compute budget",
            *_columns(rows),
            *(f"left out: {reason}" for reason in found.rejected),
            power_law_text("N_opt", found.sizes),
            power_law_text("D_opt", found.tokens),
        ]
    )


def optima_text(found: list[Optimum], law: PowerLaw | str) -> str:
    """Return the report of the optimal epochs; ``law`` says why there is none if it is text."""
    rows = [["parameters", "unique tokens", "epochs", "between", "loss"]]
    for one in found:
        epochs = f"{one.epochs:.4g}" if one.inside else f"at {'least' if one.low > 0.0 else 'most'} {one.epochs:.4g}"
        between = interval_text(one.low, one.high)
        rows.append([f"{one.parameters:.4g}", f"{one.unique:.4g}", epochs, between, f"{one.loss:.4f}"])
    outside = sum(not one.inside for one in found)
    lines = _columns(rows)
    if outside:
        lines.append(f"{outside} of {len(found)} ladders do not show the turn and are left out of the power law")
    if isinstance(law, str):
        return "\n".join([*lines, f"the power law of the optimal epochs is not identified: {law}"])
    for factor, meaning in (("U", "the number of unique tokens"), ("N", "the size")):
        if factor not in law.exponents:
            same = f"{meaning} is the same in all ladders that show the turn"
            lines.append(f"{same}: {factor} is left out of the law, which holds there only")
    return "\n".join([*lines, power_law_text("e_opt", law)])


def crossover_text(base: str, challenger: str, found: list[Crossover], refused: list[str], law: PowerLaw | str) -> str:
    """Return the report of the compute beyond which ``challenger`` beats ``base``.

    Args:
        base, challenger: names of the objectives.
        found: the crossover on each number of unique tokens.
        refused: numbers of unique tokens without one, with the reason.
        law: of the critical compute, or why there is none.
    """
    judgements = [judge_crossover(one) for one in found]
    rows = [["unique tokens", "crossover FLOPs", "interval", "verdict", "compared from", "to"]]
    for one, judged in zip(found, judgements, strict=True):
        at = f"({one.compute:.4g})"
        if one.compute == 0.0:
            at = "ahead throughout"
        if math.isinf(one.compute):
            at = f"not within the runs ({base}: up to {one.last:.3g} FLOPs)"
        ends = f"{one.first:.3g}", f"{one.last:.3g}"
        rows.append([f"{one.unique:.4g}", at, interval_text(judged.low, judged.high), _verdict(judged), *ends])
    lines = [f"{challenger} against {base}", *_columns(rows), *_reasons(judgements)]
    lines += [f"no crossover: {reason}" for reason in refused]
    lines += [
        f"U = {one.unique:.4g}: the runs of {base} of most compute are not its best, so its lowest loss stands up to "
        f"the last run of {challenger}"
        for one in found
        if one.carried
    ]
    lines += [f"left out of the law: U = {one.unique:.4g}, {one.why_unbounded()}" for one in found if not one.bounded]
    lines.append(f"C_crit is not identified: {law}" if isinstance(law, str) else power_law_text("C_crit", law))
    return "\n".join(lines)


def judge_crossover(found: Crossover) -> Judgement:
    """Return the verdict on a crossover; one that lies outside the runs is bounded by their end."""
    interval = min(found.low, found.last), max(found.high, found.first)
    return judge(f"U = {found.unique:.4g}", Kind.CROSSOVER, found.compute, interval)


def crossover_plain(found: Crossover) -> dict[str, Any]:
    """Return a crossover as values for JSON, without its draws."""
    values = {name: number(value) for name, value in found._asdict().items() if name not in ("carried", "draws")}
    judged = judge_crossover(found)
    said = {"carried": found.carried, "verdict": str(judged.verdict), "reason": judged.reason}
    return values | said | {"left_out_of_law": found.why_unbounded()}


def power_law_plain(law: PowerLaw) -> dict[str, Any]:
    """Return a power law as values for JSON."""
    k, *exponents = (judgement_plain(one) for one in judge_power_law(law))
    return {"k": k, "exponents": dict(zip(law.exponents, exponents, strict=True))}


def law_plain(law: PowerLaw | str) -> dict[str, Any]:
    """Return a power law, or why there is none, as values for JSON."""
    if isinstance(law, str):
        return {"law": None, "no_law": law}
    return {"law": power_law_plain(law)}


def judgement_plain(judged: Judgement) -> dict[str, Any]:
    """Return a verdict with its interval as values for JSON."""
    return {
        "verdict": str(judged.verdict),
        "reason": judged.reason,
        "low": number(judged.low),
        "high": number(judged.high),
        "at_minimum": number(judged.estimate),
        "own_interval": [number(end) for end in judged.own],
    }


def number(value: float) -> float | str:
    """Return a number for JSON, which has no infinity and no NaN, as text if it is one of them."""
    return float(value) if math.isfinite(value) else str(value)


def _verdict(judged: Judgement) -> str:
    return judged.verdict if judged.verdict is Verdict.IDENTIFIED else judged.verdict.upper()


def _reasons(judgements: list[Judgement]) -> list[str]:
    return [f"  {one.name}: {one.reason}" for one in judgements if one.verdict is not Verdict.IDENTIFIED]


def _columns(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
