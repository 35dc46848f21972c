"""The records of a run, ``metrics.jsonl``."""

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from card_scale import faults
from card_scale.errors import DataError
from card_scale.files import write_atomically, write_whole

Record = TypeVar("Record", bound=Mapping[str, Any])


class MetricsFile:
    """Append-only ``metrics.jsonl``: one JSON object per line, on disk as soon as it is written.

    A run that starts anew (``resume_step`` None) begins with an empty file; one that resumes after update
    ``resume_step`` drops the lines of later steps, which it is about to make again, and a last line that a kill left
    half-written. The dropping replaces the file atomically. Raises DataError for an unreadable line elsewhere: that is
    not the trace of a kill, and the file is not this program's to repair.

    What the disk refuses (it is full) is kept and tried again with the next record; a run does not end for it.
    """

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        before = path.read_bytes() if path.exists() else b""
        kept = b"" if resume_step is None else _lines_up_to(resume_step, before, path)
        if kept != before:
            write_atomically(path, kept)
        self._file = path.open("ab", buffering=0)
        self._whole = self._file.tell()
        """Bytes of the lines that are whole."""
        self._waiting = b""

    def write(self, record: Mapping[str, object]) -> OSError | None:
        """Append ``record``, a mapping with ``step``; return why it waits, None where it is on disk.

        JSON has no NaN or infinity: a number that is not finite is written as null.
        """
        text = json.dumps({key: _finite(value) for key, value in record.items()}, allow_nan=False)
        self._waiting += f"{text}\n".encode()
        try:
            faults.reach("metrics", cast(int, record["step"]))
            self._append()
        except OSError as error:
            return error
        return None

    def _append(self) -> None:
        """Write what waits as a whole: of a part the disk has taken, nothing stays."""
        try:
            write_whole(self._file, self._waiting)
        except OSError:
            self._file.truncate(self._whole)
            raise
        self._whole += len(self._waiting)
        self._waiting = b""

    def close(self) -> None:
        """Close the file, after a last attempt at what waits."""
        with contextlib.suppress(OSError):
            self._append()
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a run's ``metrics.jsonl``, none where there is no such file.

    Raises DataError for a line that is no JSON, unless it is the last, which a kill may have cut.
    """
    if not path.is_file():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    records = []
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and not line.endswith(b"\n"):
            break
        try:
            records.append(json.loads(line))
        except ValueError:
            raise DataError(f"{path}, line {number}: {line[:80]!r} is not JSON") from None
    return records


def evaluations_of(records: Sequence[Record]) -> list[Record]:
    """Return the records that are evaluations."""
    return [record for record in records if "validation_nll" in record]


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lines_up_to(step: int, content: bytes, path: Path) -> bytes:
    """The lines of ``content`` whose step is at most ``step``, without a half-written last line."""
    lines = content.splitlines(keepends=True)
    kept = []
    for number, line in enumerate(lines, start=1):
        recorded = _step(line)
        if recorded is None:
            if number == len(lines):
                break
            raise DataError(
                f'{path}, line {number}: {line[:80]!r} is not a JSON object with an integer "step"; '
                "repair or move the file away"
            )
        if recorded <= step:
            kept.append(line)
    return b"".join(kept)


def _step(line: bytes) -> int | None:
    """The step of a complete line, None for a damaged one."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return step if isinstance(step, int) else None
