"""The finished runs of a study's result table, grouped the way the figures show them."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from card_scale.errors import ConfigurationError, DataError
from card_scale.laws import columns, table, table_reader
from card_scale.laws.best_setting import best_setting
from card_scale.laws.table import TRUE, Table
from card_scale.laws.table_reader import Row


class Setting(NamedTuple):
    """Columns that a cell may be tuned over: learning rate and regularisation of a run."""

    lr: float
    weight_decay: float
    dropout: float

    def describe(self) -> str:
        """Return the setting in words."""
        return f"lr {self.lr:g}, weight decay {self.weight_decay:g}, dropout {self.dropout:g}"


_NEEDED = (columns.RUN, columns.OBJECTIVE, "size", "flops", *Setting._fields, "seed", "vocabulary_size")


@dataclass(frozen=True)
class Run:
    """A finished run."""

    name: str
    arm: str
    size: str
    parameters: float
    tokens: float
    unique: float
    flops: float
    loss: float
    bound: bool
    seed: str
    setting: Setting
    standard_error: float | None
    """Of a bound's estimate."""
    gap: float | None
    """Validation minus training-sample loss, by the same likelihood."""
    best_loss: float | None
    best_epoch: float | None
    """Of the lowest evaluation in the course of the run."""

    @property
    def epochs(self) -> float:
        """Passes over the unique tokens."""
        return self.tokens / self.unique

    @property
    def whole_epochs(self) -> bool:
        """Whether all unique tokens were seen, but for the last part of a batch."""
        return self.epochs >= 1.0 - table.EPOCHS_TOLERANCE


class Point(NamedTuple):
    """One cell of an arm: the seeds' runs at one setting."""

    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        """Return one of the runs, for what they share."""
        return self.runs[0]

    @property
    def loss(self) -> float:
        """Return the mean final loss over seeds."""
        return statistics.fmean(run.loss for run in self.runs)

    @property
    def spread(self) -> tuple[float, float]:
        """Return the lowest and the highest final loss of the seeds."""
        return min(run.loss for run in self.runs), max(run.loss for run in self.runs)

    @property
    def deviation(self) -> float | None:
        """Return the sample standard deviation over seeds, None for a single one."""
        return statistics.stdev(run.loss for run in self.runs) if len(self.runs) > 1 else None

    @property
    def loss_by_seed(self) -> dict[str, float]:
        """Return the final loss of each seed."""
        return {run.seed: run.loss for run in self.runs}

    @property
    def seeds(self) -> frozenset[str]:
        """Return the seeds of the runs."""
        return frozenset(run.seed for run in self.runs)

    def mean(self, name: str) -> float | None:
        """Return the mean of a field over seeds, None unless all have it."""
        values = [getattr(run, name) for run in self.runs]
        return None if None in values else statistics.fmean(values)


@dataclass(frozen=True)
class Study:
    """Everything that the report reads."""

    table: Table
    runs: tuple[Run, ...]
    unfinished: tuple[Row, ...]
    """Rows that failed or never ended; shown, never drawn."""
    passes: tuple[Mapping[str, str], ...]
    cells: Sequence[Mapping[str, str]]
    """All rows as text, for the settings that they share."""

    @property
    def arms(self) -> list[str]:
        """Return the arms, exact likelihoods first, in the order of the table."""
        return sorted(dict.fromkeys(run.arm for run in self.runs), key=self.is_bound)

    def exact_arms(self, names: Sequence[str]) -> list[str]:
        """Return the named arms. Raises ConfigurationError for one that the study lacks, or whose losses are bounds."""
        exact = [arm for arm in self.arms if not self.is_bound(arm)]
        for name in names:
            if name not in exact:
                raise ConfigurationError(
                    f"no arm {name!r} with an exact likelihood to compare with; the table has {', '.join(exact)}"
                )
        return list(dict.fromkeys(names))

    def is_bound(self, arm: str) -> bool:
        """Return whether an arm's losses are upper bounds."""
        return any(run.bound for run in self.runs if run.arm == arm)

    @property
    def decontaminated(self) -> bool:
        """Whether the held-out documents of all rows were compared with the training documents."""
        return all(row.get(columns.DECONTAMINATED, "").lower() in TRUE for row in self.cells)

    def panels(self) -> list[tuple[str, float]]:
        """Return (size, unique tokens) of the runs of whole epochs, small ones first."""
        sizes = {run.size: run.parameters for run in self.runs}
        pairs = {(run.size, run.unique) for run in self.runs if run.whole_epochs}
        return sorted(pairs, key=lambda pair: (sizes[pair[0]], pair[1]))

    def points(self, arm: str, size: str, unique: float) -> list[Point]:
        """Return an arm's cells on one size and subset, one for each setting, by epochs."""
        grouped: dict[tuple[float, Setting], list[Run]] = {}
        for run in self.runs:
            if (run.arm, run.size, run.unique) == (arm, size, unique):
                grouped.setdefault((run.tokens, run.setting), []).append(run)
        return [Point(tuple(group)) for _, group in sorted(grouped.items())]

    def best_points(self, arm: str, size: str, unique: float) -> list[Point]:
        """Return, for each number of epochs, the setting of the lowest loss on the seeds that its settings share."""
        cells: dict[float, dict[Setting, Point]] = {}
        for point in self.points(arm, size, unique):
            cells.setdefault(point.first.tokens, {})[point.first.setting] = point
        return [
            settings[best_setting({setting: point.loss_by_seed for setting, point in settings.items()})]
            for _, settings in sorted(cells.items())
        ]

    def curve(self, arm: str, size: str, unique: float) -> list[Point]:
        """Return the best points with the seeds that all of them have; those of the first where they share none.

        A seed also chooses the documents of the subset: a curve through points of unlike seeds would mix subsets.
        """
        points = self.best_points(arm, size, unique)
        if not points:
            return []
        seeds = frozenset.intersection(*(point.seeds for point in points)) or points[0].seeds
        kept = (Point(tuple(run for run in point.runs if run.seed in seeds)) for point in points)
        return [point for point in kept if point.runs]

    def tuned(self, arm: str) -> list[Point]:
        """Return an arm's best points on every size and subset, those below one epoch included."""
        pairs = dict.fromkeys((run.size, run.unique) for run in self.runs if run.arm == arm)
        return [point for size, unique in pairs for point in self.best_points(arm, size, unique)]


_ADVICE = table.Advice(
    unfinished="Their status says that they are done, so write the table anew with tools/study.py table",
    mixed="Make a table, and a report, of each",
)


def read(path: Path) -> Study:
    """Read a study's ``results.csv`` or ``results.parquet``, with ``losses_by_pass.csv`` beside it.

    Raises DataError for what no comparison should be made of: a number of a finished run that is none or not finite,
    mixed tokenizers or validation sets, bounds beside exact losses in one arm, duplicates, a missing column, no
    finished run, a file that cannot be read.
    """
    rows = table_reader.read_rows(path, {})
    for name in (*_NEEDED, columns.STATUS, columns.BOUND, columns.TOKENIZER, columns.VALIDATION):
        if name not in rows[0].cells:
            raise DataError(f"{path} has no column {name}; tools/study.py table writes it")
    done = [row for row in rows if row.cells[columns.STATUS] == columns.DONE]
    if not done:
        raise DataError(f"{path}: none of {len(rows)} runs is done; there is nothing to report")
    checked = table.check(done, allow_failed=False, comparison=True, settings="all", advice=_ADVICE)
    for row in rows:
        _check_vocabulary(row)
    return Study(
        table=checked,
        runs=tuple(_run(row) for row in checked.rows),
        unfinished=tuple(row for row in rows if row.cells[columns.STATUS] != columns.DONE),
        passes=_read_passes(path.with_name("losses_by_pass.csv")),
        cells=[row.cells for row in rows],
    )


class Difference(NamedTuple):
    """How far an arm lies from another on the same seeds, hence on the same subsets and in the same order."""

    seeds: int
    mean: float
    deviation: float | None
    """Over seeds; None for one."""


def difference(point: Point, base: Point) -> Difference | None:
    """Return the paired difference of final losses, None without a common seed."""
    own, other = point.loss_by_seed, base.loss_by_seed
    found = [own[seed] - other[seed] for seed in own if seed in other]
    if not found:
        return None
    return Difference(len(found), statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None)


def _run(row: Row) -> Run:
    cells = row.cells

    def number(name: str) -> float:
        value = table.number_or_nan(cells[name])
        if not math.isfinite(value):
            raise DataError(f"{row.place}: {name} = {cells[name] or '(empty)'}; it must be a finite number")
        return value

    def optional(name: str) -> float | None:
        return number(name) if cells.get(name) else None

    return Run(
        name=cells[columns.RUN],
        arm=cells[columns.OBJECTIVE],
        size=cells["size"],
        parameters=number(columns.PARAMETERS),
        tokens=number(columns.TOKENS),
        unique=number(columns.UNIQUE),
        flops=number("flops"),
        loss=number(columns.LOSS),
        bound=cells[columns.BOUND].lower() in TRUE,
        seed=cells["seed"],
        setting=Setting(*(number(name) for name in Setting._fields)),
        standard_error=optional("val_loss_standard_error"),
        gap=optional("gap"),
        best_loss=optional("best_val_loss"),
        best_epoch=optional("best_epoch"),
    )


def _check_vocabulary(row: Row) -> None:
    size = table.number_or_nan(row.cells["vocabulary_size"])
    if not (math.isfinite(size) and size == int(size) and size > 1):
        raise DataError(
            f"{row.place}: vocabulary_size = {row.cells['vocabulary_size'] or '(empty)'}; it must be a whole number "
            "above 1"
        )


def _read_csv(path: Path) -> tuple[Mapping[str, str], ...]:
    return tuple(table_reader.read_csv(path)) if path.is_file() else ()


def _read_passes(path: Path) -> tuple[Mapping[str, str], ...]:
    rows = _read_csv(path)
    for number, row in enumerate(rows, start=1):
        for name, valid, expected in (
            (columns.RUN, bool, "the id of a run"),
            ("pass", str.isdecimal, "a whole number"),
            ("loss", _is_number, "a number"),  # NaN as well: runs that failed stand there too
        ):
            if name not in row:
                raise DataError(f"{path} has no column {name}; tools/study.py table writes it")
            if not valid(row[name]):
                raise DataError(f"{path} row {number}: {name} = {row[name] or '(empty)'}; it must be {expected}")
    return rows


def _is_number(cell: str) -> bool:
    return cell.lower() == "nan" or not math.isnan(table.number_or_nan(cell))


def shared(study: Study) -> dict[str, Any]:
    """Return the columns that have one value in all rows: what the study held fixed."""
    first = study.cells[0]
    return {name: value for name, value in first.items() if all(row[name] == value for row in study.cells)}


def passes_of(study: Study, run: str) -> list[tuple[int, float]]:
    """Return (pass from 1, mean training loss) of one run."""
    return [(int(row["pass"]), float(row["loss"])) for row in study.passes if row[columns.RUN] == run]
