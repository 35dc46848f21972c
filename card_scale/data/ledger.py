"""The files of a sample ledger: what each data-parallel rank wrote down of its updates, start by start of the command.

    ledger/attempt-0001/dp0000.jsonl

Each line is a JSON object. The first is the :class:`Header`; each other tells of an update (counted from 1), of one
that was not applied, or of a range of global positions, first and last, that is not to be trained on:

    {"step": 7, "epochs": [0, 0], "samples": [3, 11], "positions": [48, 49]}
    {"step": 8, "skipped": true}
    {"passed_over": [56, 63]}

A last line without its end is what a kill left of it and counts for nothing.
"""

import dataclasses
import json
import re
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from card_scale.errors import DataError

FORMAT_VERSION = 1
_ATTEMPT = re.compile(r"attempt-(\d{4,})")
_NO_LIMIT = sys.maxsize


def attempt_name(number: int) -> str:
    """Directory name of the start of the command with that number, from 1."""
    return f"attempt-{number:04d}"


def file_name(data_parallel_rank: int) -> str:
    """File name of a data-parallel rank."""
    return f"dp{data_parallel_rank:04d}.jsonl"


def attempt_numbers(directory: Path) -> list[int]:
    """The numbers of the attempts in a ledger, ascending; none where there is no such directory."""
    return sorted(int(match[1]) for path in directory.glob("attempt-*") if (match := _ATTEMPT.fullmatch(path.name)))


@dataclasses.dataclass(frozen=True)
class Header:
    """The first line of a file: what the lines after it are to be read with."""

    start: int
    """Updates that the attempt found already made."""
    data_parallel_rank: int
    data_parallel_size: int
    global_batch: int
    samples_per_epoch: int
    dataset: str
    """Digest of the training data."""
    seed: int
    reshuffle: bool
    format: int = FORMAT_VERSION

    @property
    def run(self) -> tuple[int, int, str, int, bool]:
        """What is the same in all attempts of a run."""
        return self.global_batch, self.samples_per_epoch, self.dataset, self.seed, self.reshuffle

    @property
    def attempt(self) -> tuple[int, int]:
        """What is the same on all ranks of an attempt."""
        return self.start, self.data_parallel_size

    def to_line(self) -> str:
        """As it is written, without the line's end."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_line(cls, line: bytes, path: Path) -> "Header":
        """Read the first line of ``path``. Raises DataError for anything else than a header of this format."""
        content = _parse(line)
        types = {field.name: field.type for field in dataclasses.fields(cls)}
        if (
            not isinstance(content, dict)
            or {name: type(value) for name, value in content.items()} != types
            or min(content["global_batch"], content["samples_per_epoch"]) < 1
            or min(content["start"], content["seed"]) < 0
        ):
            raise DataError(
                f"{path}, line 1: {_shown(line)} is not a ledger's header, a JSON object with {', '.join(types)}"
            )
        header = cls(**content)
        if header.format != FORMAT_VERSION:
            raise DataError(f"{path}, line 1: format {header.format}, this version reads {FORMAT_VERSION}")
        rank, size = header.data_parallel_rank, header.data_parallel_size
        if not 0 <= rank < size or path.name != file_name(rank):
            raise DataError(f"{path}, line 1: of data-parallel rank {rank} of {size}, whose file is {file_name(rank)}")
        return header


class Range(NamedTuple):
    """Global positions that an attempt passed over."""

    first: int
    last: int
    is_certain: bool
    """False where a later attempt goes on from the very update after which this was written: whether the checkpoint
    knew of it cannot be told."""


class Rows(NamedTuple):
    """Samples that were trained on: int64 [N] each."""

    steps: np.ndarray
    epochs: np.ndarray
    samples: np.ndarray
    positions: np.ndarray

    def where(self, chosen: np.ndarray) -> "Rows":
        """Some of the rows, by a mask, a slice or their numbers."""
        return Rows(*(column[chosen] for column in self))


class Ledger(NamedTuple):
    """What the attempts of a run recorded, without what was lost with a killed process and made again."""

    header: Header
    """Of the last attempt."""
    attempts: int
    rows: Rows
    skipped: frozenset[int]
    """Updates that were not applied."""
    passed_over: tuple[Range, ...]
    first_start: int
    """Updates made before the first attempt that counts."""
    ends: tuple[int, ...]
    """The last update that each data-parallel rank of the last attempt recorded."""


class _Attempt(NamedTuple):
    number: int
    headers: dict[Path, Header]

    @property
    def header(self) -> Header:
        return next(iter(self.headers.values()))


def read_ledger(directory: Path) -> Ledger:
    """Read all attempts of a run.

    An attempt that starts after ``start`` updates makes void what earlier ones recorded of later updates.

    Raises:
        DataError: no ledger, a line that is none of a ledger's, or attempts of different runs; naming the file and
            line, and what would be valid.
    """
    if not directory.is_dir():
        raise DataError(f"{directory}: no such directory; a run records its samples there where run.ledger is true")
    numbers = attempt_numbers(directory)
    attempts = [attempt for number in numbers if (attempt := _read_headers(directory, number)).headers]
    if not attempts:
        raise DataError(f"{directory}: holds no {attempt_name(1)}/{file_name(0)} or later with a header")
    anew = max((place for place, attempt in enumerate(attempts) if attempt.header.start == 0), default=0)
    counting = attempts[anew:]
    for attempt in counting[1:]:
        _check_same(next(iter(attempt.headers.items())), next(iter(counting[0].headers.items())))
    files: list[_File] = []
    limit = _NO_LIMIT
    for attempt in reversed(counting):
        files += [_read_file(path, header, limit) for path, header in attempt.headers.items()]
        limit = min(limit, attempt.header.start)
    last = counting[-1]
    return Ledger(
        header=last.header,
        attempts=len(numbers),
        rows=Rows(*(np.concatenate(columns) for columns in zip(*(file.rows for file in files), strict=True))),
        skipped=frozenset(step for file in files for step in file.skipped),
        passed_over=tuple(passed_over for file in files for passed_over in file.passed_over),
        first_start=counting[0].header.start,
        ends=tuple(file.end for file in files[: len(last.headers)]),
    )


def _read_headers(directory: Path, number: int) -> _Attempt:
    """The headers of an attempt's files by path, without files that a kill left none in."""
    headers: dict[Path, Header] = {}
    for path in sorted((directory / attempt_name(number)).glob("dp*.jsonl")):
        with path.open("rb") as file:
            line = file.readline()
        if line.endswith(b"\n"):
            headers[path] = Header.from_line(line, path)
            _check_same((path, headers[path]), next(iter(headers.items())), of_attempt=True)
    return _Attempt(number, headers)


def _check_same(one: tuple[Path, Header], other: tuple[Path, Header], *, of_attempt: bool = False) -> None:
    """Raise DataError, naming both files, for headers that differ where those of a run, or of an attempt, agree."""
    (path, mine), (expected_in, expected) = one, other
    if (mine.run, of_attempt and mine.attempt) != (expected.run, of_attempt and expected.attempt):
        raise DataError(
            f"{path}, line 1: {mine.to_line()} is of another {'attempt' if of_attempt else 'run'} than {expected_in}, "
            f"{expected.to_line()}; move away the attempts that do not belong to this run"
        )


class _File(NamedTuple):
    rows: Rows
    skipped: list[int]
    passed_over: list[Range]
    end: int


def _read_file(path: Path, header: Header, limit: int) -> _File:
    """What a rank recorded of updates up to ``limit``, the start of a later attempt."""
    steps, sizes, epochs, samples, positions = (array("q") for _ in range(5))
    skipped: list[int] = []
    passed_over: list[Range] = []
    end = header.start
    for number, line in _lines(path):
        record = _parse(line)
        if not _is_sound(record, header.start):
            raise DataError(
                f"{path}, line {number}: {_shown(line)} is not a ledger's line: a step after {header.start}, either "
                'with equally many "epochs", "samples" and "positions" or "skipped", or a range "passed_over"'
            )
        end = record.get("step", end)
        if end > limit:
            continue
        if "passed_over" in record:
            first, last = record["passed_over"]
            passed_over.append(Range(first, last, is_certain=end < limit))
        elif "skipped" in record:
            skipped.append(end)
        else:
            steps.append(end)
            sizes.append(len(record["samples"]))
            for column, name in ((epochs, "epochs"), (samples, "samples"), (positions, "positions")):
                column.extend(record[name])
    rows = Rows(np.repeat(np.asarray(steps), np.asarray(sizes)), *map(np.asarray, (epochs, samples, positions)))
    return _File(rows.where(~np.isin(rows.steps, skipped)) if skipped else rows, skipped, passed_over, end)


def _is_sound(record: Any, start: int) -> bool:
    """Whether a line's JSON is one that a ledger holds after its header."""
    match record:
        case {"step": step, "epochs": list(epochs), "samples": list(samples), "positions": list(positions), **other}:
            columns = (epochs, samples, positions)
            is_even = len(epochs) == len(samples) == len(positions)
            return is_even and _are_numbers([step], *columns) and step > start and not other
        case {"step": step, "skipped": True, **other}:
            return _are_numbers([step]) and step > start and not other
        case {"passed_over": [first, last], **other}:
            return _are_numbers([first, last]) and first <= last and not other
    return False


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The complete lines after the header, with their numbers."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number > 1 and line.endswith(b"\n"):
                yield number, line


def _are_numbers(*lists: list) -> bool:
    """Whether lists hold integers of 64 bits from 0 on, and nothing else."""
    try:
        return all(min(array("q", values), default=0) >= 0 for values in lists)
    except (TypeError, OverflowError):
        return False


def _parse(line: bytes) -> Any:
    """The JSON of a line, None where it is none."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def _shown(line: bytes) -> str:
    return repr(line[:80].decode(errors="replace").rstrip("\n"))
