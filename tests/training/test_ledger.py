"""Simulated runs, stopped, killed and resumed on other layouts, through the real loader and the real ledger."""

import contextlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import event, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from card_scale.data.ledger import Header, attempt_name, file_name, read_ledger
from card_scale.data.ledger_check import LedgerReport, check_ledger
from card_scale.data.loader import GlobalBatchLoader
from card_scale.data.samples import Samples
from card_scale.errors import DataError
from card_scale.training.ledger import Ledger, WritingLedger

SIZES = (1, 2, 4)


class Stream(NamedTuple):
    """Stands in for a dataset's: the ledger records numbers of samples, not their tokens."""

    sample_count: int

    def samples(self, sample_ids):
        return np.zeros((len(sample_ids), 2), dtype=np.int64)


class Attempt(NamedTuple):
    """One start of the command: the updates start + 1 ... end, on so many data-parallel ranks."""

    start: int
    end: int
    size: int
    is_torn: bool = False
    """Whether a kill cut the last rank's last line."""


class Run(NamedTuple):
    samples_per_epoch: int
    global_batch: int
    seed: int
    reshuffle: bool
    attempts: tuple[Attempt, ...]

    def kept(self, number: int) -> range:
        """The updates of an attempt that no later one made again."""
        attempt, later = self.attempts[number], self.attempts[number + 1 :]
        return range(attempt.start + 1, min([attempt.end, *(other.start for other in later)]) + 1)


@st.composite
def runs(draw) -> Run:
    """A run of some epochs, ended at any steps and above all near the ends of epochs."""
    samples_per_epoch = draw(st.integers(1, 40))
    global_batch = draw(st.sampled_from([4, 8, 12]))
    steps = max(2, draw(st.integers(1, 4)) * samples_per_epoch // global_batch + draw(st.integers(0, 2)))
    near = {epoch * samples_per_epoch // global_batch + more for epoch in range(1, 5) for more in (0, 1)}
    ends = st.sampled_from(sorted(near & set(range(1, steps + 1))) or [steps]) | st.integers(1, steps)
    attempts: list[Attempt] = []
    start = 0
    while len(attempts) < 5 and start < steps:
        end = max(start, draw(ends))
        lost = min(draw(st.integers(0, 3)), end)  # more than were made where a checkpoint turns out damaged
        attempts.append(Attempt(start, end, draw(st.sampled_from(SIZES)), is_torn=lost > 0 and draw(st.booleans())))
        start = end - lost
    attempts.append(Attempt(start, max(start, steps), draw(st.sampled_from(SIZES))))
    return Run(samples_per_epoch, global_batch, draw(st.integers(0, 2**40)), draw(st.booleans()), tuple(attempts))


def train(run: Run, ledger: Path, shifts: dict[int, int]) -> None:
    """Make the attempts of a run; the loader of attempt number n is asked for shifts[n] updates later."""
    for number, attempt in enumerate(run.attempts):
        directory = ledger / attempt_name(number + 1)
        directory.mkdir(parents=True)
        for rank in range(attempt.size):
            train_rank(run, attempt, rank, directory, shifts.get(number, 0))
        if attempt.is_torn:
            path = directory / file_name(attempt.size - 1)
            path.write_bytes(path.read_bytes()[:-3])


def train_rank(run: Run, attempt: Attempt, rank: int, directory: Path, shift: int) -> None:
    layout = {"data_parallel_rank": rank, "data_parallel_size": attempt.size}
    order = {"global_batch": run.global_batch, "seed": run.seed, "reshuffle": run.reshuffle}
    header = Header(start=attempt.start, samples_per_epoch=run.samples_per_epoch, dataset="d", **layout, **order)
    with (
        contextlib.closing(WritingLedger(directory, header)) as written,
        GlobalBatchLoader(Stream(run.samples_per_epoch), micro_batch=1, **layout, **order) as loader,
    ):
        for step in range(attempt.start + 1, attempt.end + 1):
            written.trained(step, loader.rank_batch(step - 1 + shift))


def check(run: Run, shifts: dict[int, int] | None = None, change=lambda _: None) -> LedgerReport:
    """Make a run and change its files; return what is found of it."""
    with tempfile.TemporaryDirectory() as directory:
        train(run, Path(directory), shifts or {})
        change(Path(directory))
        return check_ledger(read_ledger(Path(directory)))


@given(runs())
@hypothesis_settings(max_examples=150)
def test_every_run_is_found_exact(run):
    report = check(run)
    steps = run.attempts[-1].end
    assert report.is_exact, report.faults
    assert report.steps == steps
    assert report.rows == steps * run.global_batch
    assert report.epochs_finished == steps * run.global_batch // run.samples_per_epoch
    assert report.attempts == len(run.attempts)
    event(f"{len(run.attempts)} attempts")


def kept_attempts(run: Run, first_start: int = 0) -> list[int]:
    return [n for n, attempt in enumerate(run.attempts) if run.kept(n) and attempt.start >= first_start]


@given(runs(), st.data())
@hypothesis_settings(max_examples=150)
def test_a_row_more_or_less_is_found(run, data):
    number = data.draw(st.sampled_from(kept_attempts(run)), "attempt")
    step = data.draw(st.sampled_from(run.kept(number)), "step")
    rank = data.draw(st.integers(0, run.attempts[number].size - 1), "rank")
    place = data.draw(st.integers(0, run.global_batch // run.attempts[number].size - 1), "row")
    is_lost = data.draw(st.booleans(), "is_lost")

    def change(ledger: Path) -> None:
        path = ledger / attempt_name(number + 1) / file_name(rank)
        lines = path.read_text().splitlines(keepends=True)
        record = json.loads(lines[step - run.attempts[number].start])
        assert record["step"] == step
        for name in ("epochs", "samples", "positions"):
            record[name][place : place + 1] = record[name][place : place + 1] * (0 if is_lost else 2)
        lines[step - run.attempts[number].start] = json.dumps(record) + "\n"
        path.write_text("".join(lines))

    report = check(run, change=change)
    assert (report.lost, report.doubled, report.uneven) == (int(is_lost), int(not is_lost), 1)
    assert not report.is_exact
    assert f"step {step}, " in report.faults[0]


@given(runs(), st.data())
@hypothesis_settings(max_examples=150)
def test_a_resume_one_step_late_or_early_is_found(run, data):
    shift = data.draw(st.sampled_from([1, -1]), "shift")
    candidates = kept_attempts(run, first_start=int(shift < 0))
    if not candidates:
        return
    report = check(run, {data.draw(st.sampled_from(candidates), "attempt"): shift})
    assert not report.is_exact
    assert report.lost > 0


@given(runs(), st.data())
@hypothesis_settings(max_examples=50)
def test_a_line_or_file_that_is_gone_is_found(run, data):
    """Of all but the last update, which a kill may have kept some ranks from recording."""
    number = data.draw(st.sampled_from(kept_attempts(run)), "attempt")
    attempt = run.attempts[number]
    step = data.draw(st.sampled_from(run.kept(number)), "step")
    if step == run.attempts[-1].end and attempt.size > 1:
        return

    def change(ledger: Path) -> None:
        path = ledger / attempt_name(number + 1) / file_name(attempt.size - 1)
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines[:1] + lines[1:] if f'"step":{step},' not in line))

    report = check(run, change=change)
    if step == run.attempts[-1].end:
        assert report.rows == (step - 1) * run.global_batch
    else:
        assert report.lost == run.global_batch // attempt.size


def header(**changes) -> Header:
    return Header(**{"start": 0, "data_parallel_rank": 3, "data_parallel_size": 4, "global_batch": 8,
                     "samples_per_epoch": 5, "dataset": "0a", "seed": 2, "reshuffle": False, **changes})  # fmt: skip


def samples(*positions: int) -> Samples:
    place = torch.tensor(positions)
    return Samples(torch.zeros(len(positions), 2), place % 5, place // 5, place, batch_size=8)


def test_each_line_is_with_the_operating_system_before_the_next(tmp_path):
    ledger = WritingLedger(tmp_path, header())
    path = tmp_path / "dp0003.jsonl"
    expected = [
        '{"start": 0, "data_parallel_rank": 3, "data_parallel_size": 4, "global_batch": 8, "samples_per_epoch": 5, '
        '"dataset": "0a", "seed": 2, "reshuffle": false, "format": 1}'
    ]
    assert path.read_text().splitlines() == expected
    for write, line in (
        (lambda: ledger.trained(1, samples(6, 7)), '{"step":1,"epochs":[1,1],"samples":[1,2],"positions":[6,7]}'),
        (lambda: ledger.skipped(2), '{"step":2,"skipped":true}'),
        (lambda: ledger.passed_over(16, 31), '{"passed_over":[16,31]}'),
    ):
        write()
        expected.append(line)
        assert path.read_text() == "".join(f"{line}\n" for line in expected)
    ledger.close()


def test_a_full_disk_is_named_and_said_once(tmp_path):
    ledger = WritingLedger(tmp_path, header())
    with ledger._file, open("/dev/full", "wb", buffering=0) as full:
        ledger._file = full
        with pytest.raises(DataError, match=r"dp0003\.jsonl: No space left on device; run\.ledger=true"):
            ledger.skipped(4)
        ledger.close()


def test_what_another_attempt_wrote_is_not_touched(tmp_path):
    WritingLedger(tmp_path, header()).close()
    with pytest.raises(FileExistsError):
        WritingLedger(tmp_path, header())


def test_a_rank_without_a_ledger_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ledger = Ledger()
    ledger.trained(1, samples(0, 1))
    ledger.skipped(2)
    ledger.passed_over(0, 1)
    ledger.close()
    assert list(tmp_path.iterdir()) == []


def test_skips_are_written_as_they_are_read(tmp_path):
    """An update that was not applied, whose batch is not tried again."""
    directory = tmp_path / attempt_name(1)
    directory.mkdir()
    with contextlib.closing(WritingLedger(directory, header(data_parallel_rank=0, data_parallel_size=1))) as ledger:
        whole = Stream(5)
        with GlobalBatchLoader(whole, global_batch=8, micro_batch=8, data_parallel_rank=0, data_parallel_size=1,
                               seed=2, reshuffle=False) as loader:  # fmt: skip
            ledger.trained(1, loader.rank_batch(0))
            ledger.skipped(2)
            ledger.passed_over(8, 15)
            ledger.trained(3, loader.rank_batch(2))
    report = check_ledger(read_ledger(tmp_path), saved_step=3)
    assert report.is_exact, report.faults
    assert (report.steps, report.skipped, report.passed_over) == (3, 1, 8)
    shutil.rmtree(directory)
