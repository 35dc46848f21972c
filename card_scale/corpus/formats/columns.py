"""The text column of what pyarrow reads, a parquet file or an Arrow one."""

from collections.abc import Iterator
from typing import Any

from card_scale.corpus.optional_library import optional_library
from card_scale.errors import DataError

BATCH_ROWS = 256
"""Rows that are turned to bytes at a time."""


def check_column(path: str, names: list[str], column: str) -> None:
    """Raise DataError, naming the columns, where a table does not have exactly one of this name."""
    count = names.count(column)
    if count == 0:
        raise DataError(
            f"{path}: no column {column!r}, the file has {', '.join(map(repr, names))}; name the column with --text-key"
        )
    if count > 1:
        raise DataError(f"{path}: {count} columns are named {column!r}; rename all but one")


def check_strings(path: str, column: str, kind: Any) -> None:
    """Raise DataError for a pyarrow type that holds neither strings nor bytes, nor nothing but nulls."""
    types = optional_library("pyarrow", path).types
    value = kind.value_type if types.is_dictionary(kind) else kind
    held = (
        types.is_string,
        types.is_large_string,
        types.is_string_view,
        types.is_binary,
        types.is_large_binary,
        types.is_binary_view,
        types.is_null,
    )
    if not any(holds(value) for holds in held):
        raise DataError(f"{path}: column {column!r} holds {kind}, expected strings")


def values(path: str, array: Any) -> Iterator[bytes | None]:
    """Yield the values of a pyarrow array as the file's own bytes, which may be no UTF-8; None for a null."""
    pyarrow = optional_library("pyarrow", path)
    # As bytes, so that a value that is not UTF-8 is met by the caller, by row, and not inside the library.
    held = array.dictionary.cast(pyarrow.large_binary()) if pyarrow.types.is_dictionary(array.type) else None
    for begin in range(0, len(array), BATCH_ROWS):
        rows = array.slice(begin, BATCH_ROWS)
        yield from (rows.cast(pyarrow.large_binary()) if held is None else held.take(rows.indices)).to_pylist()
