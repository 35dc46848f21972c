"""Whether a run trained on every sample of every epoch exactly once, told from what its updates recorded.

What counts is found without the code that makes the order: how often each position and each sample of an epoch occurs,
and, where epochs are not reshuffled, whether they agree. That each sample also stands where the order puts it is asked
beside that.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from card_scale.data.ledger import Ledger, Range, Rows
from card_scale.data.order import epoch_order

_SHOWN = 5
"""Faults of a kind that are named."""

Interval = tuple[int, int]
"""Positions from the first to before the second."""


class LedgerReport(NamedTuple):
    """What a ledger shows."""

    attempts: int
    steps: int
    rows: int
    """Samples trained on, each time counted."""
    samples_per_epoch: int
    epochs_finished: int
    lost: int
    """Samples of the epochs, as far as so many updates reach, that were not trained on."""
    doubled: int
    """Times that a sample was trained on in an epoch beyond the first."""
    misplaced: int
    """Rows whose sample, epoch or update is not that of their position."""
    uneven: int
    """Updates with another number of rows than the global batch."""
    skipped: int
    passed_over: int
    """Positions that are not to be trained on, and were not."""
    is_unfinished: bool
    """Whether a kill kept some ranks from recording the last update, which is then not counted."""
    faults: tuple[str, ...]
    """The first few of each kind, and what else contradicts itself."""

    @property
    def is_exact(self) -> bool:
        """Whether every sample of every epoch was trained on once, but for those passed over on purpose."""
        return not (self.lost or self.doubled or self.misplaced or self.uneven or self.faults)

    def verdict(self) -> str:
        """The numbers that must be 0, in a line."""
        return (
            f"{self.lost} samples lost, {self.doubled} doubled, {self.misplaced} misplaced; "
            f"{self.uneven} steps of another size than the global batch"
        )

    def text(self) -> str:
        """The report for a person."""
        lines = [
            f"{self.steps} steps in {self.attempts} attempts; {self.rows} samples, {self.samples_per_epoch} in an "
            f"epoch, {self.epochs_finished} epochs finished",
            self.verdict(),
        ]
        if self.skipped or self.passed_over:
            lines.append(f"{self.skipped} steps not applied, {self.passed_over} positions passed over")
        if self.is_unfinished:
            lines.append("one more step is not recorded by all ranks, as after a kill, and not counted")
        return "\n".join([*lines, *self.faults])


def check_ledger(ledger: Ledger, saved_step: int | None = None) -> LedgerReport:
    """Check what a run recorded.

    Args:
        ledger: of the run.
        saved_step: updates that its newest checkpoint contains, None without one: so far the ledger must go.
    """
    ledger, is_unfinished = _without_unfinished(ledger, saved_step or 0)
    # By position, and rows of one position in the order of their updates.
    rows = ledger.rows.where(np.lexsort((ledger.rows.steps, ledger.rows.positions)))
    steps = max(ledger.header.start, *ledger.skipped, int(rows.steps.max(initial=0)))
    is_new = np.diff(rows.positions, prepend=-1) > 0
    trained = rows.positions[is_new]
    ranges = _merged(ledger.passed_over)
    updates = _Updates.of(rows, ledger)
    absent = steps - len(ledger.skipped.union(updates.steps.tolist()))
    missing = _missing(trained, ranges, int(updates.due.sum()) + absent * ledger.header.global_batch)
    repeats, earlier = _repeats(rows, ledger.header.samples_per_epoch)
    distinct = min(len(trained), len(rows.steps) - len(repeats))
    order = _order_of(ledger)
    misplaced = _misplaced(rows, is_new, ledger, order)
    uneven = _uneven(updates, ledger)
    faults = [
        *_contradictions(ledger, steps, saved_step or 0, trained),
        *itertools.islice(_name_missing(missing, trained, ledger, order), _SHOWN),
        *itertools.islice(_name_absent(rows, repeats, ledger, is_complete=not missing and not ranges), _SHOWN),
        *(_name_repeat(rows, *pair) for pair in zip(repeats[:_SHOWN].tolist(), earlier.tolist(), strict=False)),
        *(_name_misplaced(rows, row, ledger, order) for row in misplaced[:_SHOWN].tolist()),
        *uneven[:_SHOWN],
    ]
    return LedgerReport(
        attempts=ledger.attempts,
        steps=steps,
        rows=len(rows.steps),
        samples_per_epoch=ledger.header.samples_per_epoch,
        epochs_finished=_reached(rows) // ledger.header.samples_per_epoch,
        lost=len(trained) + _length(missing) - distinct,
        doubled=len(rows.steps) - distinct,
        misplaced=len(misplaced),
        uneven=len(uneven),
        skipped=len(ledger.skipped),
        passed_over=sum(end - begin - _count_in(trained, (begin, end)) for begin, end in ranges),
        is_unfinished=is_unfinished,
        faults=tuple(faults),
    )


def _without_unfinished(ledger: Ledger, saved_step: int) -> tuple[Ledger, bool]:
    """The ledger without an update that a kill kept some ranks from recording, and whether there is one.

    It is the last, and one: before an update the ranks wait for each other.
    """
    last = max(ledger.ends)
    if last == min(ledger.ends) or last <= saved_step:
        return ledger, False
    rows = ledger.rows.where(ledger.rows.steps != last)
    return ledger._replace(rows=rows, skipped=ledger.skipped - {last}), True


def _reached(rows: Rows) -> int:
    """The position before which those of the rows lie, which are sorted by it."""
    return int(rows.positions[-1]) + 1 if len(rows.positions) else 0


def _merged(ranges: Iterable[Range]) -> list[Interval]:
    """Disjoint intervals in order."""
    merged: list[Interval] = []
    for first, last, _ in sorted(ranges):
        begin = first
        if merged and merged[-1][1] >= first:
            begin, end = merged.pop()
            last = max(last, end - 1)
        merged.append((begin, last + 1))
    return merged


def _without(intervals: Iterable[Interval], removed: list[Interval]) -> Iterator[Interval]:
    """What is left of intervals; both are disjoint and in order."""
    for begin, end in intervals:
        for first, after in removed:
            if first >= end:
                break
            if begin < first:
                yield begin, first
            begin = max(begin, after)
        if begin < end:
            yield begin, end


def _length(intervals: list[Interval]) -> int:
    return sum(end - begin for begin, end in intervals)


def _count_in(trained: np.ndarray, interval: Interval) -> int:
    """How many of the ascending positions lie in an interval."""
    begin, end = np.searchsorted(trained, interval)
    return int(end - begin)


def _missing(trained: np.ndarray, passed_over: list[Interval], due: int) -> list[Interval]:
    """The positions that are not among ``trained`` (ascending), but lie before one that is, or before so many as are
    ``due``."""
    bounds = np.concatenate([[-1], trained])
    before = np.flatnonzero(np.diff(bounds) > 1)
    gaps = zip((bounds[before] + 1).tolist(), bounds[before + 1].tolist(), strict=True)
    missing = list(_without(gaps, passed_over))
    remaining = due - len(trained) - _length(missing)
    for begin, end in _without([(int(bounds[-1]) + 1, 2**63)], passed_over):
        if remaining <= 0:
            break
        missing.append((begin, min(end, begin + remaining)))
        remaining -= _length(missing[-1:])
    return missing


def _repeats(rows: Rows, samples_per_epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows whose sample an earlier row of the same epoch holds, and that row of each."""
    visits = rows.epochs * samples_per_epoch + rows.samples
    order = np.argsort(visits, kind="stable")
    again = np.flatnonzero(np.diff(visits[order]) == 0)
    repeats, earlier = order[again + 1], order[again]
    by_position = np.argsort(repeats)
    return repeats[by_position], earlier[by_position]


def _order_of(ledger: Ledger) -> Callable[[int], np.ndarray]:
    """The samples of an epoch in the order of the run."""
    header = ledger.header
    return functools.lru_cache(maxsize=2)(
        lambda epoch: epoch_order(header.seed, epoch if header.reshuffle else 0, header.samples_per_epoch)
    )


def _misplaced(rows: Rows, is_new: np.ndarray, ledger: Ledger, order: Callable[[int], np.ndarray]) -> np.ndarray:
    """The rows that are not of the epoch or not the sample of their position, or of an earlier update than the rows
    of the position before."""
    epochs, places = np.divmod(rows.positions, ledger.header.samples_per_epoch)
    wrong = rows.epochs != epochs
    for epoch, begin, end in _slices(epochs):
        wrong[begin:end] |= rows.samples[begin:end] != order(epoch)[places[begin:end]]
    if not ledger.header.reshuffle:
        first = np.full(ledger.header.samples_per_epoch, -1)
        first[places[epochs == 0]] = rows.samples[epochs == 0]
        wrong |= (first[places] >= 0) & (first[places] != rows.samples)
    new = np.flatnonzero(is_new)
    wrong[new[1:]] |= np.diff(rows.steps[new]) < 0
    return np.flatnonzero(wrong)


def _slices(ascending: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Each value, with the first of its places and the one after its last."""
    values, begins = np.unique(ascending, return_index=True)
    bounds = itertools.pairwise([*begins.tolist(), len(ascending)])
    for value, (begin, end) in zip(values.tolist(), bounds, strict=True):
        yield value, begin, end


class _Updates(NamedTuple):
    """The updates that were made: int64 [U] each."""

    steps: np.ndarray
    rows: np.ndarray
    due: np.ndarray
    """Rows of a global batch that were not passed over."""

    @classmethod
    def of(cls, rows: Rows, ledger: Ledger) -> "_Updates":
        size = ledger.header.global_batch
        steps, first_rows, counts = np.unique(rows.steps, return_index=True, return_counts=True)
        due = np.full(len(steps), size)
        passed_over = _merged(ledger.passed_over)
        begins = rows.positions[first_rows] // size * size
        for number in np.flatnonzero(counts < size).tolist():
            batch = [(int(begins[number]), int(begins[number]) + size)]
            due[number] = _length(list(_without(batch, passed_over)))
        return cls(steps, counts, due)


def _uneven(updates: _Updates, ledger: Ledger) -> list[str]:
    """Name the updates with other rows than a global batch."""
    skipped = np.isin(updates.steps, list(ledger.skipped))
    wrong = np.flatnonzero(skipped | (updates.rows != updates.due))
    return [
        f"step {step} has {count} rows; "
        + ("by another rank it was not applied" if was_skipped else f"the global batch is {ledger.header.global_batch}")
        for step, count, was_skipped in zip(
            *(of[wrong].tolist() for of in (updates.steps, updates.rows, skipped)), strict=True
        )
    ]


def _contradictions(ledger: Ledger, steps: int, saved_step: int, trained: np.ndarray) -> Iterator[str]:
    if ledger.first_start:
        yield f"nothing was recorded of the first {ledger.first_start} steps; run.ledger must be true from the start"
    if saved_step > steps:
        yield f"the newest checkpoint contains {saved_step} steps, the ledger {steps}"
    for first, last in _merged(passed_over for passed_over in ledger.passed_over if passed_over.is_certain):
        if count := _count_in(trained, (first, last)):
            yield f"positions {first} to {last - 1} were passed over, but {count} of them were trained on"


def _name_missing(
    missing: list[Interval], trained: np.ndarray, ledger: Ledger, order: Callable[[int], np.ndarray]
) -> Iterator[str]:
    lost = 0
    for begin, end in missing:
        before = _count_in(trained, (0, begin))
        for position in range(begin, end):
            step = (before + lost) // ledger.header.global_batch + 1
            for skipped in sorted(ledger.skipped):
                step += skipped <= step
            epoch, place = divmod(position, ledger.header.samples_per_epoch)
            yield f"lost: step {step}, epoch {epoch}, sample {order(epoch)[place]} (position {position})"
            lost += 1


def _name_absent(rows: Rows, repeats: np.ndarray, ledger: Ledger, *, is_complete: bool) -> Iterator[str]:
    """Name the samples of finished epochs in whose place others stand twice, where each position was trained on."""
    count = ledger.header.samples_per_epoch
    if not is_complete:
        return
    for epoch in np.union1d(rows.epochs[repeats], rows.positions[repeats] // count).tolist():
        if (epoch + 1) * count <= _reached(rows):
            absent = np.setdiff1d(np.arange(count), rows.samples[rows.epochs == epoch])
            yield from (f"lost: epoch {epoch}, sample {sample}, at no position" for sample in absent.tolist())


def _name_repeat(rows: Rows, row: int, earlier: int) -> str:
    return (
        f"doubled: step {rows.steps[row]}, epoch {rows.epochs[row]}, sample {rows.samples[row]} (position "
        f"{rows.positions[row]}), as in step {rows.steps[earlier]} (position {rows.positions[earlier]})"
    )


def _name_misplaced(rows: Rows, row: int, ledger: Ledger, order: Callable[[int], np.ndarray]) -> str:
    step, of_epoch, sample, position = (int(column[row]) for column in rows)
    epoch, place = divmod(position, ledger.header.samples_per_epoch)
    return (
        f"misplaced: step {step}, epoch {of_epoch}, sample {sample} at position {position}, "
        f"which is in epoch {epoch} that of sample {order(epoch)[place]}"
    )
