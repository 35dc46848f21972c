"""One column of text in an Arrow file, such as the shards that Hugging Face's ``save_to_disk`` writes.

Both forms are read: the stream, and the file with an index at its end. It is mapped to memory, so batches before the
ones that are wanted cost next to nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from card_scale.corpus.formats.columns import check_column, check_strings, values
from card_scale.corpus.formats.record import Record
from card_scale.corpus.optional_library import optional_library
from card_scale.errors import DataError

_INDEXED = b"ARROW1"


def batch_count(path: str, column: str) -> int:
    """Return the number of record batches.

    Raises DataError for a damaged file, one without the column or with two of it, or a column that holds no strings.
    """
    with _opened(path) as (schema, batches):
        check_column(path, schema.names, column)
        check_strings(path, column, schema.field(column).type)
        return sum(1 for _ in batches)


def records(path: str, column: str, begin: int, end: int, size: int) -> Iterator[Record]:
    """Yield the rows of the batches from ``begin`` to before ``end``, numbered from 0 in the whole file.

    ``size`` is what these batches count as in bytes. Raises DataError for a damaged file.
    """
    with _opened(path) as (_, batches):
        number = 0
        for place, batch in enumerate(batches):
            if place == end:
                break
            if place < begin:
                number += batch.num_rows
                continue
            position = size * (place + 1 - begin) // (end - begin)
            for value in values(path, batch.column(column)):
                yield Record(number, value, position, lambda _byte, number=number: f"row {number}")  # type: ignore[misc]
                number += 1


@contextmanager
def _opened(path: str) -> Iterator[tuple[Any, Iterator[Any]]]:
    """Yield the schema and the batches."""
    pyarrow = optional_library("pyarrow", path)
    ipc = optional_library("pyarrow.ipc", path)
    with open(path, "rb") as file:
        indexed = file.read(len(_INDEXED)) == _INDEXED
    try:
        with pyarrow.memory_map(path) as mapped:
            if indexed:
                reader = ipc.open_file(mapped)
                yield reader.schema, map(reader.get_batch, range(reader.num_record_batches))
            else:
                reader = ipc.open_stream(mapped)
                yield reader.schema, iter(reader)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: damaged or no Arrow file ({error})") from error
