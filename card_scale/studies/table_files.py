"""Tables on disk: the same rows as parquet, with types, and as csv, for people."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from card_scale.errors import ConfigurationError
from card_scale.files import write_atomically


def write(rows: Sequence[dict[str, Any]], stem: Path) -> list[Path]:
    """Write rows of equal keys to ``stem.csv`` and ``stem.parquet``; returns the files.

    In csv None is empty, and lists are JSON. Raises ConfigurationError where there is no row, or no pyarrow.
    """
    if not rows:
        raise ConfigurationError(f"{stem}: no rows to write")
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: json.dumps(value) if isinstance(value, list) else value for key, value in row.items()})
    files = [stem.with_suffix(".csv"), stem.with_suffix(".parquet")]
    write_atomically(files[0], text.getvalue().encode())
    write_atomically(files[1], _parquet(rows))
    return files


def _parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    try:
        # Only here: the extra "data" brings it.
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigurationError("parquet needs pyarrow: pip install -c constraints.txt -e .[data]") from None
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), sink)
    return sink.getvalue().to_pybytes()
