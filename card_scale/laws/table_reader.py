"""Reading a result table as text: csv as this project, a spreadsheet or anybody's script writes it, or parquet."""

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from card_scale.errors import ConfigurationError, DataError

SEPARATORS = (",", ";", "\t")

_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+([eE][+-]?\d+)?")
_DECIMAL_POINT = re.compile(r"[+-]?\d+\.\d+([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Row:
    """A row as text by column, and where it stands."""

    place: str
    """File and row, for messages; rows count from 1 after the header."""
    cells: Mapping[str, str]


def find(path: Path) -> Path:
    """Return the result table at ``path``: the file itself, or a directory's ``results.parquet`` or ``results.csv``.

    Raises DataError for a directory without either.
    """
    if not path.is_dir():
        return path
    for file in (path / "results.parquet", path / "results.csv"):
        if file.is_file():
            return file
    raise DataError(f"{path} has neither results.parquet nor results.csv; tools/study.py table writes them")


def read_rows(path: Path, names: Mapping[str, str]) -> list[Row]:
    """Read a csv file (with a header, UTF-8) or a parquet file as text.

    Args:
        path: ends in .csv or .parquet.
        names: the file's column for each standard name that it calls otherwise; one column may serve several names,
            and keeps its own.

    Raises:
        DataError: another ending, a file that is missing or damaged, no rows, or a csv row with too many or too few
            cells.
        ConfigurationError: a column of ``names`` that the file lacks, or no pyarrow for a parquet file.
    """
    readers: dict[str, Callable[[Path], list[dict[str, str]]]] = {".csv": read_csv, ".parquet": _read_parquet}
    if path.suffix not in readers and not path.exists():
        raise DataError(f"{path}: no such file or directory")
    if path.suffix not in readers:
        raise DataError(f"{path}: a result table ends in .csv or .parquet")
    records = readers[path.suffix](path)
    if not records:
        raise DataError(f"{path}: no rows")
    for standard, own in names.items():
        if own not in records[0]:
            raise ConfigurationError(
                f"{path} has no column {own} to take as {standard}; it has {', '.join(records[0])}"
            )
    return [
        Row(f"{path} row {number}", record | {standard: record[own] for standard, own in names.items()})
        for number, record in enumerate(records, start=1)
    ]


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a csv file (with a header, UTF-8), empty for one without.

    Columns are separated by commas, semicolons or tabs, whichever the header has most of; a byte order mark is passed
    over. A spreadsheet that separates by semicolons writes decimal commas: there, they are read as points.

    Raises DataError for a file that cannot be read, rows that do not fit the header, and where commas do not separate,
    for commas in numbers beside decimal points, in one column or two.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            separator = max(SEPARATORS, key=file.readline().count)
            file.seek(0)
            lines = list(csv.reader(file, delimiter=separator))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from None
    except (OSError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {_cause(error)}") from None
    if not lines:
        return []
    header = [name.strip() for name in lines[0]]
    if len(set(header)) < len(header):
        raise DataError(f"{path}: two columns have one name in the header {', '.join(header)}")
    for number, line in enumerate(lines[1:], start=1):
        if len(line) != len(header):
            raise DataError(f"{path} row {number} has {len(line)} cells, the header {len(header)}; was it cut off?")
    rows = [dict(zip(header, (cell.strip() for cell in line), strict=True)) for line in lines[1:]]
    return rows if separator == "," else _with_points(path, rows)


def _with_points(path: Path, rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Return the rows with decimal points for decimal commas.

    Beside a decimal point anywhere in the file, a comma is one of thousands: 140,000 is not 140.
    """
    commas, points = _first_of_each_column(rows, _DECIMAL_COMMA), _first_of_each_column(rows, _DECIMAL_POINT)
    if commas and points:
        both = next((name for name in commas if name in points), None)
        with_comma, with_point = both or next(iter(commas)), both or next(iter(points))
        raise DataError(
            f"{path}: column {with_comma} has commas ({commas[with_comma]}) and column {with_point} has decimal points "
            f"({points[with_point]}); write all decimals with one of them, and thousands without"
        )
    return [
        {name: cell.replace(",", ".") if _DECIMAL_COMMA.fullmatch(cell) else cell for name, cell in row.items()}
        for row in rows
    ]


def _first_of_each_column(rows: Sequence[dict[str, str]], pattern: re.Pattern[str]) -> dict[str, str]:
    """Return the first cell of the pattern in each column that has one."""
    found: dict[str, str] = {}
    for row in rows:
        for name, cell in row.items():
            if pattern.fullmatch(cell):
                found.setdefault(name, cell)
    return found


def _read_parquet(path: Path) -> list[dict[str, str]]:
    try:
        # Only parquet needs it, and it is an optional dependency.
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigurationError(
            f"{path}: parquet needs pyarrow (pip install -c constraints.txt -e .[data]); the csv file does not"
        ) from None
    try:
        with path.open("rb") as file:  # a path of its own pyarrow would take for a whole data set if it is a directory
            records = pyarrow.parquet.read_table(file).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {_cause(error)}") from None
    return [{name: "" if cell is None else str(cell) for name, cell in record.items()} for record in records]


def _cause(error: Exception) -> str:
    """Return the cause without the path, which an OSError repeats."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
