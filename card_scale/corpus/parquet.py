"""One column of text in a parquet file, read a row group at a time."""

from collections.abc import Iterator
from typing import Any

from card_scale.corpus.optional_library import optional_library
from card_scale.errors import DataError


def row_group_bytes(path: str, column: str) -> list[int]:
    """Return the uncompressed bytes of each row group, all columns together.

    Raises DataError for a damaged file, one without the column, or a column that holds no strings.
    """
    pyarrow = optional_library("pyarrow", path)
    with _open(path) as file:
        schema = file.schema_arrow
        if column not in schema.names:
            raise DataError(
                f"{path}: no column {column!r}, the file has {', '.join(map(repr, schema.names))}; "
                "name the column with --text-key"
            )
        held = schema.field(column).type
        value_type = held.value_type if pyarrow.types.is_dictionary(held) else held
        if not (pyarrow.types.is_string(value_type) or pyarrow.types.is_large_string(value_type)):
            raise DataError(f"{path}: column {column!r} holds {held}, expected strings")
        return [file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups)]


def column_values(path: str, column: str, begin: int, end: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield row number, from 0, and value of the row groups from ``begin`` to before ``end``; None for a null.

    The bytes are the file's own and may be no UTF-8. Raises DataError for a damaged file.
    """
    pyarrow = optional_library("pyarrow", path)
    with _open(path) as file:
        row = sum(file.metadata.row_group(group).num_rows for group in range(begin))
        try:
            for batch in file.iter_batches(row_groups=range(begin, end), columns=[column]):
                # As bytes, so that a value that is not UTF-8 is met by the caller, by row, and not inside the library.
                for value in batch.column(0).cast(pyarrow.large_string()).cast(pyarrow.large_binary()).to_pylist():
                    yield row, value
                    row += 1
        except pyarrow.ArrowException as error:
            raise DataError(f"{path}: row group {begin}: damaged parquet file ({error})") from error


def _open(path: str) -> Any:
    pyarrow = optional_library("pyarrow", path)
    try:
        return optional_library("pyarrow.parquet", path).ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:  # a footer that is none comes as OSError
        raise DataError(f"{path}: damaged or no parquet file ({error})") from error
