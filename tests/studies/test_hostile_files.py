"""Whoever can write a run's records, a study's or a table cannot run code by them: they are refused by their name."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest

from card_scale.errors import DataError
from card_scale.laws.table import check
from card_scale.laws.table_reader import read_rows
from card_scale.studies import measure, results, slurm
from card_scale.studies.state import StudyDirectory
from card_scale.training.records import MetricsFile, read_metrics
from card_scale.training.run_directory import RunDirectory
from card_scale.training.run_lock import RunLock
from tests.hostile import Hostile

READERS: dict[str, Callable[[Path], object]] = {
    "metrics.jsonl": lambda path: read_metrics(path),
    "resumed/metrics.jsonl": lambda path: MetricsFile(path, 5),
    "environment.json": lambda path: results._environment(path),
    "exit.json": lambda path: RunDirectory(path.parent).read_exit(),
    "outcomes/one.json": lambda path: StudyDirectory(path.parents[1]).outcome(SimpleNamespace(id="one")),
    "measured.json": lambda path: measure.read(path.parent),
    "slurm/jobs.json": lambda path: slurm.queued(StudyDirectory(path.parents[1])),
    "table.csv": lambda path: check(read_rows(path, {}), allow_failed=False),
    "table.parquet": lambda path: check(read_rows(path, {}), allow_failed=False),
}
"""What reads each file."""


@pytest.mark.parametrize("name", READERS)
def test_no_record_and_no_table_is_unpickled(tmp_path, hostile: Hostile, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    for content in hostile.files.values():
        # The last line of records is taken for one that a kill has cut.
        path.write_bytes(content + b'\n{"step": 1}\n')
        with pytest.raises(DataError, match=str(path)):
            READERS[name](path)
        assert not hostile.marker.exists()


def test_a_column_of_python_objects_is_read_as_what_it_is_stored_as(tmp_path, hostile):
    """Arrow once unpickled a column's type out of its metadata (CVE-2023-47248)."""
    path = tmp_path / "table.parquet"
    metadata = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": hostile.files["pickle in ASCII"],
    }
    schema = pyarrow.schema([pyarrow.field("run", pyarrow.string(), metadata=metadata)])
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array(["a"])], schema=schema), path)
    assert [row.cells for row in read_rows(path, {})] == [{"run": "a"}]


def test_the_lock_of_a_run_is_not_unpickled(tmp_path, hostile):
    lock = RunLock(tmp_path)
    for content in hostile.files.values():
        lock.path.write_bytes(content)
        assert RunLock._read(lock.path) is None
