"""One column of text in a parquet file, read a row group at a time."""

from collections.abc import Iterator
from typing import Any

from card_scale.corpus.formats.columns import BATCH_ROWS, check_column, check_strings, values
from card_scale.corpus.formats.record import Record
from card_scale.corpus.optional_library import optional_library
from card_scale.errors import DataError

_READ = 1 << 20  # of a column at a time: otherwise a row group's column is read whole


def row_group_bytes(path: str, column: str) -> list[int]:
    """Return the uncompressed bytes of each row group, all columns together.

    Raises DataError for a damaged file, one without the column or with two of it, or a column that holds no strings.
    """
    with _open(path) as file:
        schema = file.schema_arrow
        check_column(path, schema.names, column)
        check_strings(path, column, schema.field(column).type)
        return [file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups)]


def records(path: str, column: str, begin: int, end: int, size: int) -> Iterator[Record]:
    """Yield the rows of the row groups from ``begin`` to before ``end``, numbered from 0 in the whole file.

    ``size`` is what these row groups count as in bytes. Raises DataError for a damaged file.
    """
    pyarrow = optional_library("pyarrow", path)
    with _open(path) as file:
        rows = [file.metadata.row_group(group).num_rows for group in range(end)]
        first = number = sum(rows[:begin])
        of_piece = max(1, sum(rows[begin:]))
        try:
            for batch in file.iter_batches(BATCH_ROWS, row_groups=range(begin, end), columns=[column]):
                for value in values(path, batch.column(column)):
                    position = size * (number + 1 - first) // of_piece
                    yield Record(number, value, position, lambda _byte, number=number: f"row {number}")  # type: ignore[misc]
                    number += 1
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path}: row group {begin}: damaged parquet file ({error})") from error


def _open(path: str) -> Any:
    pyarrow = optional_library("pyarrow", path)
    try:
        return optional_library("pyarrow.parquet", path).ParquetFile(path, buffer_size=_READ)
    except (pyarrow.ArrowInvalid, OSError) as error:  # a footer that is none comes as OSError
        raise DataError(f"{path}: damaged or no parquet file ({error})") from error
