"""Which runs stand beside one another: the same seeds in every table, figure and crossover of a panel.

A seed chooses the subset, so a mean over other seeds is a loss on other data. Of each arm, the number of epochs that
is best on the seeds that its whole ladder has is looked up; the seeds that these cells of all arms share are those that
the panel compares. Cells that lack some of them stand apart, with the ladder's own seeds.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from card_scale.studies.report.finished_runs import Point, Study


class Panel(NamedTuple):
    """The arms of one size and subset, on equal seeds."""

    size: str
    unique: float
    seeds: frozenset[str]
    """Those compared; empty where the arms share none, and each stands on its own. An arm may lack them beside others
    that do not (a bound, which is not ranked): it stands on its own too."""
    ladders: Mapping[str, Sequence[Point]]
    """Of each arm, all its numbers of epochs on the seeds that all of them have."""
    points: Mapping[str, Sequence[Point]]
    """Of each arm, the numbers of epochs that have the seeds compared, on these."""

    def lowest(self, arm: str) -> Point:
        """Return the number of epochs of lowest loss on the seeds compared."""
        return min(self.points[arm], key=lambda point: point.loss)

    def is_compared(self, arm: str) -> bool:
        """Return whether an arm stands on the seeds compared."""
        return bool(self.seeds) and self.lowest(arm).seeds == self.seeds

    @property
    def seeds_said(self) -> str:
        """Return the seeds compared in words, with the arms that stand on others; needs seeds compared."""
        others = [f"{arm} on {seeds_text(self.lowest(arm).seeds)}" for arm in self.points if not self.is_compared(arm)]
        return seeds_text(self.seeds) + (f"; not compared: {', '.join(others)}" if others else "")

    def apart(self, arm: str) -> list[Point]:
        """Return the ladder's points up to the first of those compared, if it lacks seeds: what is drawn apart."""
        compared = {point.first.tokens for point in self.points[arm]}
        first = min(compared)
        found = [point for point in self.ladders[arm] if point.first.tokens <= first]
        lacking = [point for point in self.ladders[arm] if point.first.tokens not in compared]
        return found if any(point.first.tokens < first for point in lacking) else []

    def every(self, arm: str) -> list[Point]:
        """Return each number of epochs once: on the seeds compared, or on the ladder's where it lacks some."""
        found = {point.first.tokens: point for point in (*self.ladders[arm], *self.points[arm])}
        return [point for _, point in sorted(found.items())]


def panel(study: Study, size: str, unique: float) -> Panel:
    """Return what is compared on one size and subset."""
    best = {arm: points for arm in study.arms if (points := study.best_points(arm, size, unique))}
    ladders = {arm: study.curve(arm, size, unique) for arm in best}
    ranked = [arm for arm in best if not study.is_bound(arm)] or list(best)
    seeds = frozenset.intersection(*(_at_lowest(ladders[arm], best[arm]).seeds for arm in ranked))
    shown = {arm: _with_seeds(best[arm], seeds) or ladders[arm] for arm in best}
    return Panel(size, unique, seeds, ladders, shown)


def panels(study: Study) -> list[Panel]:
    """Return all panels, small sizes and subsets first."""
    return [panel(study, size, unique) for size, unique in study.panels()]


def on_subset(study: Study, arm: str, unique: float) -> list[Point]:
    """Return an arm's points on a subset, of all sizes, on the seeds that their panels compare."""
    found = (panel(study, size, subset) for size, subset in study.panels() if subset == unique)
    return [point for one in found if arm in one.points for point in one.every(arm)]


def _at_lowest(ladder: Sequence[Point], best: Sequence[Point]) -> Point:
    tokens = min(ladder, key=lambda point: point.loss).first.tokens
    return next(point for point in best if point.first.tokens == tokens)


def _with_seeds(points: Sequence[Point], seeds: frozenset[str]) -> list[Point]:
    if not seeds:
        return []
    return [Point(tuple(run for run in p.runs if run.seed in seeds)) for p in points if seeds <= p.seeds]


def seeds_text(seeds: frozenset[str]) -> str:
    """Return seeds in words, in their order."""
    ordered = sorted(seeds, key=lambda seed: (len(seed), seed))
    return f"seed {ordered[0]}" if len(ordered) == 1 else f"seeds {', '.join(ordered)}"
