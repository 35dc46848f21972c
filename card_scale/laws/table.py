"""The rows of a result table that a law may be fitted through, and the refusal of all others."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from card_scale.errors import ConfigurationError, DataError
from card_scale.laws import columns
from card_scale.laws.best_setting import best_setting
from card_scale.laws.runs import Runs
from card_scale.laws.table_reader import Row

EPOCHS_TOLERANCE = 0.01
"""Largest relative difference between ``epochs`` and D / U, and of U beyond D: what packing drops."""

TRUE, FALSE = ("true", "1", "yes"), ("false", "0", "no", "")


@dataclass(frozen=True)
class Table:
    """The rows of a table that a fit may use."""

    rows: Sequence[Row]
    runs: Runs
    left_out: Sequence[str]
    """Rows that were left out because they are not finished, with the reason."""
    other_settings: int = 0
    """Rows that were left out because another setting of their cell is better."""

    def objectives(self) -> list[str]:
        """Return the objectives in the order they appear; empty if the table does not name any."""
        return list(dict.fromkeys(row.cells[columns.OBJECTIVE] for row in self.rows if columns.OBJECTIVE in row.cells))

    def bounds(self) -> list[str]:
        """Return the objectives whose losses are upper bounds."""
        return [
            name
            for name in self.objectives()
            if any(
                row.cells[columns.OBJECTIVE] == name and columns.BOUND in row.cells and _is_bound(row)
                for row in self.rows
            )
        ]

    def of(self, objective: str) -> Runs:
        """Return the runs of one objective."""
        return self.runs.take(np.array([row.cells[columns.OBJECTIVE] == objective for row in self.rows]))


class Advice(NamedTuple):
    """What the reader of a refusal can do, a sentence each: that depends on what the table is read for."""

    unfinished: str = ""
    mixed: str = ""
    settings: str = ""


NO_ADVICE = Advice()


def select(rows: Sequence[Row], where: Mapping[str, Sequence[str]]) -> list[Row]:
    """Return the rows whose cell is one of those named, for every column named.

    Raises:
        ConfigurationError: a column that the table lacks, or a choice that no row makes.
    """
    for name, choices in where.items():
        if name not in rows[0].cells:
            raise ConfigurationError(f"the table has no column {name}; it has {', '.join(rows[0].cells)}")
        for choice in choices:
            if not any(_equal(row.cells[name], choice) for row in rows):
                found = ", ".join(sorted({row.cells[name] for row in rows})[:20])
                raise ConfigurationError(f"no row has {name} = {choice!r}; the column holds {found}")
    kept = [
        row
        for row in rows
        if all(any(_equal(row.cells[name], choice) for choice in choices) for name, choices in where.items())
    ]
    if not kept:
        chosen = ", ".join(f"{name} = {' or '.join(map(repr, choices))}" for name, choices in where.items())
        raise ConfigurationError(f"no row has {chosen} at once")
    return kept


def _equal(cell: str, choice: str) -> bool:
    return cell == choice or number_or_nan(cell) == number_or_nan(choice)


def check(
    rows: Sequence[Row],
    allow_failed: bool,
    comparison: bool = False,
    settings: Literal["one", "best", "all"] = "one",
    advice: Advice = NO_ADVICE,
    needs_unique: bool = True,
) -> Table:
    """Return the rows as runs to fit, or refuse them.

    Args:
        rows: the rows to fit.
        allow_failed: leave out rows that are not ``done`` or lack a finite loss, instead of refusing them. They are
            never fitted.
        comparison: several objectives, exact losses and bounds among them, are kept apart and compared, not fitted.
        settings: ``one`` refuses several settings of a cell, ``best`` keeps the rows of the best one
            (:func:`card_scale.laws.best_setting.best_setting`), ``all`` is for a caller that keeps them apart.
        advice: what ends the message of a refusal.
        needs_unique: whether the unique tokens are read; where they are not, a table without them counts every token as
            seen once.

    Raises:
        DataError: naming file, row, column and value: a missing column; a number that is none, not finite or not
            positive; unfinished runs; several tokenizers, validation sets or objectives; a bound that is neither true
            nor false; bounds beside exact losses of one objective; duplicates; U above D; epochs other than D / U;
            several settings of one cell.
    """
    if not needs_unique:
        rows = [_seen_once(row) for row in rows]
    _refuse_missing(rows[0])
    unfinished = {row.place: reason for row in rows if (reason := _unfinished(row))}
    if unfinished and not allow_failed:
        shown = "; ".join(list(unfinished.values())[:5]) + ("; ..." if len(unfinished) > 5 else "")
        raise DataError(
            _advised(
                f"{len(unfinished)} of {len(rows)} runs are not finished, and what is made of the others would hide "
                f"it: {shown}",
                advice.unfinished,
            )
        )
    kept = [row for row in rows if row.place not in unfinished]
    if not kept:
        raise DataError(f"{rows[0].place} and all others: no finished run")
    _refuse_incomparable(kept, comparison, advice)
    _refuse_duplicates(kept)
    names = (*columns.REQUIRED, columns.FLOPS) if columns.FLOPS in kept[0].cells else columns.REQUIRED
    runs = Runs(*(np.array([_positive(row, name) for row in kept]) for name in names))
    _refuse_impossible(kept, runs)
    if settings == "best":
        best = {row.place for cell in _grouped(kept, columns.CELL).values() for row in _of_best_setting(cell)}
        is_best = np.array([row.place in best for row in kept])
        chosen = [row for row in kept if row.place in best]
        return Table(chosen, runs.take(is_best), list(unfinished.values()), len(kept) - len(chosen))
    if settings == "one":
        for cell in _grouped(kept, columns.CELL).values():
            _refuse_settings(cell, advice)
    return Table(kept, runs, list(unfinished.values()))


def _refuse_incomparable(kept: Sequence[Row], comparison: bool, advice: Advice) -> None:
    for name in (columns.TOKENIZER, columns.VALIDATION):
        _refuse_mixed(kept, name, "their losses cannot be compared", advice)
    if not comparison:
        _refuse_mixed(kept, columns.OBJECTIVE, "each objective has a law of its own", advice)
    for objective in _grouped(kept, (columns.OBJECTIVE,)).values():
        _refuse_mixed(objective, columns.BOUND, "an upper bound and an exact loss are different quantities", advice)


def _refuse_missing(first: Row) -> None:
    for name in columns.REQUIRED:
        if name not in first.cells:
            raise DataError(f"{first.place}: no column {name}; a result table has {', '.join(columns.REQUIRED)}")


def _seen_once(row: Row) -> Row:
    """Return a row without unique tokens as one whose tokens are all unique, without its epochs."""
    if columns.UNIQUE in row.cells or columns.TOKENS not in row.cells:
        return row
    kept = {name: cell for name, cell in row.cells.items() if name != columns.EPOCHS}
    return Row(row.place, kept | {columns.UNIQUE: row.cells[columns.TOKENS]})


def _advised(message: str, advice: str) -> str:
    return f"{message}. {advice}" if advice else message


def _grouped(rows: Sequence[Row], names: Sequence[str]) -> dict[tuple[str, ...], list[Row]]:
    """Return the rows by their cells in the columns that the table has of those named."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(_canonical(row.cells[name]) for name in names if name in row.cells), []).append(row)
    return groups


def _of_best_setting(cell: Sequence[Row]) -> list[Row]:
    """Return the rows of the setting that is the best of a cell's."""
    settings = _grouped(cell, columns.SETTINGS)
    losses = {
        setting: {
            "".join(seed): statistics.fmean(float(row.cells[columns.LOSS]) for row in repeats)
            for seed, repeats in _grouped(runs, (columns.SEED,)).items()
        }
        for setting, runs in settings.items()
    }
    return settings[best_setting(losses)]


def _refuse_settings(cell: Sequence[Row], advice: Advice) -> None:
    first = cell[0]
    for name in columns.SETTINGS:
        for row in cell:
            if name in row.cells and _canonical(row.cells[name]) != _canonical(first.cells[name]):
                raise DataError(
                    _advised(
                        f"{first.place} and {row.place} agree in objective, N, D and U, but {name} is "
                        f"{first.cells[name] or '(empty)'} and {row.cells[name] or '(empty)'}; runs of one cell are "
                        "fitted as repeats that differ in their seed alone",
                        advice.settings,
                    )
                )


def _unfinished(row: Row) -> str:
    """Return why a row is no finished run, empty if it is one."""
    status = row.cells.get(columns.STATUS, columns.DONE)
    if status != columns.DONE:
        return f"{row.place}: {columns.STATUS} = {status or '(empty)'}"
    loss = row.cells[columns.LOSS]
    if not loss or loss.lower() in ("nan", "inf", "-inf"):
        return f"{row.place}: {columns.LOSS} = {loss or '(empty)'}"
    return ""


def number_or_nan(cell: str) -> float:
    """Return the number that a cell holds, NaN where it holds none."""
    try:
        return float(cell)
    except ValueError:
        return math.nan


def _positive(row: Row, name: str) -> float:
    value = number_or_nan(row.cells[name])
    if not 0.0 < value < math.inf:
        raise DataError(f"{row.place}: {name} = {row.cells[name] or '(empty)'}; it must be a positive finite number")
    return value


def _is_bound(row: Row) -> bool:
    cell = row.cells[columns.BOUND].lower()
    if cell not in (*TRUE, *FALSE):
        raise DataError(f"{row.place}: {columns.BOUND} = {row.cells[columns.BOUND]}; it must be true or false")
    return cell in TRUE


def _refuse_mixed(rows: Sequence[Row], name: str, why: str, advice: Advice) -> None:
    first: dict[str, Row] = {}
    for row in rows:
        if name in row.cells:
            value = row.cells[name]
            if name == columns.BOUND:
                value = "true" if _is_bound(row) else "false"  # however the table spells it
            first.setdefault(value, row)
    if len(first) > 1:
        (one, at), (other, beside) = list(first.items())[:2]
        raise DataError(
            _advised(
                f"{name} is mixed: {at.place} has {one or '(empty)'}, {beside.place} has {other or '(empty)'}; {why}",
                advice.mixed,
            )
        )


def _refuse_duplicates(rows: Sequence[Row]) -> None:
    identity = [name for name in columns.IDENTITY if name in rows[0].cells]
    for names in ([columns.RUN] if columns.RUN in rows[0].cells else [], identity):
        seen: dict[tuple[str, ...], Row] = {}
        for row in rows:
            key = tuple(_canonical(row.cells[name]) for name in names)
            if names and key in seen:
                values = ", ".join(f"{name} = {row.cells[name] or '(empty)'}" for name in names)
                raise DataError(f"{row.place} repeats {seen[key].place}: {values}; a run must stand in the table once")
            seen[key] = row


def _canonical(cell: str) -> str:
    """Return one text for all ways to write a number."""
    number = number_or_nan(cell)
    return cell if math.isnan(number) else repr(number)


def _refuse_impossible(rows: Sequence[Row], runs: Runs) -> None:
    for row, tokens, unique in zip(rows, runs.D, runs.U, strict=True):
        if unique > tokens * (1.0 + EPOCHS_TOLERANCE):
            raise DataError(
                f"{row.place}: {columns.UNIQUE} = {unique:.6g} is more than {columns.TOKENS} = {tokens:.6g}; "
                f"count the unique tokens that the run has seen"
            )
        if row.cells.get(columns.EPOCHS):
            epochs = _positive(row, columns.EPOCHS)
            if abs(epochs * unique / tokens - 1.0) > EPOCHS_TOLERANCE:
                raise DataError(
                    f"{row.place}: {columns.EPOCHS} = {epochs:.6g}, but {columns.TOKENS} / {columns.UNIQUE} = "
                    f"{tokens / unique:.6g}"
                )
