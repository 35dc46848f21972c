"""What the numbers of a panel say, in sentences that stand beside its figure."""

from collections.abc import Sequence
from typing import NamedTuple

from card_scale.studies.report.compared import Panel, on_subset, seeds_text
from card_scale.studies.report.finished_runs import Study, difference

CLEAR = 0.005
"""Nats per token below which a change is called none."""


class Crossing(NamedTuple):
    """Where an arm falls below the first one for good, identified by the runs."""

    arm: str
    unique: float
    flops: float
    low: float
    high: float


def named(study: Study, arm: str) -> str:
    """Return an arm's name, a bound's with what it is."""
    return f"{arm} (upper bound)" if study.is_bound(arm) else arm


def over_epochs(study: Study, one: Panel) -> tuple[str, ...]:
    """Return where each arm is lowest and what repeating further did, exact losses first, the lowest first."""
    said = []
    for arm in sorted(one.points, key=lambda name: (study.is_bound(name), one.lowest(name).loss)):
        lowest, last = one.lowest(arm), one.points[arm][-1]
        text = f"{named(study, arm)}: {'at most ' if study.is_bound(arm) else ''}{lowest.loss:.3f} at "
        text += _epochs(lowest.first.epochs)
        rise = last.loss - lowest.loss
        if last.first.tokens > lowest.first.tokens and rise > CLEAR:
            text += f", {rise:.2f} higher at {last.first.epochs:.3g}"
        elif last.first.tokens == lowest.first.tokens and len(one.every(arm)) > 1:
            text += ", still falling there"
        said.append(f"{text}.")
    where = f"On {one.seeds_said}." if one.seeds else "The arms share no seed: they are not compared."
    return (*said, where)


def of_compute(study: Study, unique: float, crossed: Sequence[Crossing]) -> tuple[str, ...]:
    """Return the lowest loss of each arm and the FLOPs that it took, and the crossovers that are identified."""
    said = []
    for arm in study.arms:
        points = on_subset(study, arm, unique)
        if points:
            lowest = min(points, key=lambda point: point.loss)
            sign = "at most " if study.is_bound(arm) else ""
            said.append(f"{named(study, arm)}: {sign}{lowest.loss:.3f} with {lowest.first.flops:.2g} FLOPs.")
    found = [one for one in crossed if one.unique == unique]
    said += [f"{one.arm} is lower from {one.flops:.2g} FLOPs on ({one.low:.2g} to {one.high:.2g})." for one in found]
    return (*said, *(() if found else ("No crossover is identified by these runs.",)))


def of_gap(one: Panel) -> tuple[str, ...]:
    """Return the widest and the narrowest gap after the longest runs."""
    gaps = {arm: gap for arm in one.points if (gap := one.points[arm][-1].mean("gap")) is not None}
    if len(gaps) < 2:
        return tuple(f"{arm}: {gap:+.2f} nats after its longest runs." for arm, gap in gaps.items())
    widest, narrowest = max(gaps, key=gaps.__getitem__), min(gaps, key=gaps.__getitem__)
    return (
        f"After the longest runs of each arm the gap is widest for {widest} ({gaps[widest]:+.2f} nats at "
        f"{_epochs(one.points[widest][-1].first.epochs)}) and narrowest for {narrowest} ({gaps[narrowest]:+.2f} at "
        f"{_epochs(one.points[narrowest][-1].first.epochs)}).",
    )


def summary(study: Study, panels: list[Panel]) -> tuple[str, str, str]:
    """Return three sentences: what was trained, what came out, and what limits it."""
    return _trained(study), _came_out(study, panels), _limits(study, panels)


def _trained(study: Study) -> str:
    epochs = sorted({run.epochs for run in study.runs})
    span = _epochs(epochs[0]) if len(epochs) == 1 else f"{epochs[0]:.3g} to {_epochs(epochs[-1])}"
    uniques = sorted({run.unique for run in study.runs if run.whole_epochs} or {run.unique for run in study.runs})
    subset = f"{uniques[0]:,.0f}" if len(uniques) == 1 else f"{uniques[0]:,.0f} to {uniques[-1]:,.0f}"
    others = f"; {_count(len(study.unfinished), 'other run is', 'other runs are')} not done" if study.unfinished else ""
    return (
        f"{_count(len(study.runs), 'run', 'runs')} of {_count(len(study.arms), 'arm', 'arms')} "
        f"({', '.join(study.arms)}) trained on {subset} unique tokens for {span}{others}."
    )


def _came_out(study: Study, panels: list[Panel]) -> str:
    """Return the result of the last panel, of the largest size and subset."""
    if not panels:
        return "No run went through all of its unique tokens, so nothing can be said of repetition."
    one = panels[-1]
    exact = [arm for arm in one.points if not study.is_bound(arm)]
    ranked = sorted(exact or one.points, key=lambda arm: one.lowest(arm).loss)
    where = f"At the largest, {one.size} on {one.unique:,.0f} unique tokens, " if len(panels) > 1 else ""
    first = one.lowest(ranked[0])
    sign = "" if exact else "at most "
    best = f"{ranked[0]} is lowest: {sign}{first.loss:.3f} nats at {_epochs(first.first.epochs)}"
    if len(ranked) == 1:
        points = one.points[ranked[0]]
        rise = points[-1].loss - first.loss
        more = f"; {_epochs(points[-1].first.epochs)} end {rise:.2f} higher" if rise > CLEAR else ""
        name = "" if len(one.points) > 1 else "the only arm, "
        return _sentence(f"{where}{name}{best}{more}")
    found = difference(first, one.lowest(ranked[1])) if one.seeds else None
    second = one.lowest(ranked[1])
    if found is None:
        return _sentence(f"{where}the arms share no seed, hence no data: their losses are not ranked")
    seeds = f"on {seeds_text(one.seeds)}"
    agree = ""
    if found.seeds > 1 and found.deviation is not None:
        signs = {run < other for run, other in _paired(first.loss_by_seed, second.loss_by_seed)}
        agree = ", in every seed" if len(signs) == 1 else ", but the seeds disagree about the order"
    kind = "" if exact else "; both are upper bounds, so the order of the models is not known"
    return _sentence(
        f"{where}{best}, {-found.mean:.3f} below {ranked[1]} ({second.loss:.3f} at {_epochs(second.first.epochs)}) "
        f"{seeds}{agree}{kind}"
    )


def _paired(own: dict[str, float], other: dict[str, float]) -> list[tuple[float, float]]:
    return [(own[seed], other[seed]) for seed in own if seed in other]


def _limits(study: Study, panels: list[Panel]) -> str:
    said = []
    for arm in (arm for one in panels[-1:] for arm in one.points if study.is_bound(arm)):
        one = panels[-1]
        exact = [one.lowest(other).loss for other in one.points if not study.is_bound(other)]
        lowest = one.lowest(arm).loss
        if not one.is_compared(arm):
            verdict = f"on {seeds_text(one.lowest(arm).seeds)}, and is compared with no exact loss"
        elif exact and lowest < min(exact):
            verdict = "below every exact loss, so it is better"
        else:
            verdict = "which says nothing of its rank"
        said.append(f"{arm} is known by an upper bound only, {lowest:.3f}" + (f", {verdict}" if exact else ""))
    if all(len(one.seeds) <= 1 for one in panels):
        said.append("each comparison rests on one seed, so small differences may be noise")
    said.append(
        f"nothing here says how models above {max(run.parameters for run in study.runs):,.0f} parameters behave"
    )
    return _sentence("; ".join(said))


def _sentence(text: str) -> str:
    return f"{text[0].upper() if text.startswith(('the ', 'each ', 'nothing ')) else text[0]}{text[1:]}."


def _epochs(count: float) -> str:
    return f"{count:.3g} epoch{'' if round(count, 3) == 1 else 's'}"


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"
