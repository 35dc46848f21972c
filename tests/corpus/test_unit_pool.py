"""A worker that is killed at the worst moment ends the build with a message, and never makes it wait."""

import os
import signal
import sys
import time

import pytest

from card_scale.corpus import unit_pool, units
from card_scale.corpus.build import BuildSettings, build_dataset
from card_scale.corpus.sources import InputSettings
from card_scale.errors import DataError
from tests.corpora import make_texts
from tests.corpus.test_build import wait_until

start_worker = unit_pool._start_worker


def start_worker_that_dies_while_it_reports(directory, *rest) -> None:
    """The worker is killed inside its first lock of a report, or where there is none, at the end of the report."""
    start_worker(directory, *rest)
    report = unit_pool._report.__code__

    def die():
        (directory.parent / "reporting").touch()
        time.sleep(0.5)  # in which the other process looks at what has been reported
        os.kill(os.getpid(), signal.SIGKILL)

    def watch(frame, event, argument):
        if event == "return" and frame.f_code is report:
            die()
        if event == "c_return" and type(getattr(argument, "__self__", None)).__name__ == "SemLock":
            while frame is not None:
                if frame.f_code is report:
                    die()
                frame = frame.f_back

    sys.setprofile(watch)


def too_late(_number, _frame):
    pytest.fail("the build still waits")


def test_a_worker_that_is_killed_while_it_reports_ends_the_build(tmp_path, tokenizer_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for number, text in enumerate(make_texts(40, seed=1)):
        (tmp_path / "in" / f"{number:02d}.txt").write_text(text)
    build_unit = units.build_unit

    def build_unit_while_the_worker_reports(*arguments):
        wait_until((tmp_path / "reporting").exists)
        return build_unit(*arguments)

    monkeypatch.setattr(unit_pool, "_start_worker", start_worker_that_dies_while_it_reports)
    monkeypatch.setattr(units, "build_unit", build_unit_while_the_worker_reports)
    inputs = InputSettings((str(tmp_path / "in"),))
    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(40)
    try:
        with pytest.raises(DataError, match="a worker process died"):
            build_dataset(BuildSettings(inputs, 0.0, unit_bytes=1000), tokenizer_path, tmp_path / "data", 2)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
