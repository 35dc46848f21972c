"""What the records say of a run's speed."""

import types

import pytest

from card_scale.training import recorder
from card_scale.training.guard import Refusals
from card_scale.training.records import read_metrics
from card_scale.training.run_directory import RunDirectory
from card_scale.training.stragglers import Delays
from card_scale.training.train_step import StepReport
from tests.layouts.trajectory import small_config

FIRST_SECONDS, SECONDS = 100.0, 2.0


def recorded(tmp_path, monkeypatch, logged, *, start, compiles):
    """Let four updates pass, of which the first takes long; return seconds a step by logged step."""
    now = [0.0]
    monkeypatch.setattr(recorder, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    directory = RunDirectory(tmp_path)
    directory.take()
    recording = recorder.WritingRecorder(
        small_config(train={"compile": compiles}),
        directory,
        vocabulary_rows=256,
        samples_per_epoch=100,
        total_steps=8,
        world_size=1,
        resume_step=start,
        passed_over=0,
    )
    recording.restart_clock(start)
    for step in range(start + 1, start + 5):
        now[0] += FIRST_SECONDS if step == start + 1 else SECONDS
        if step in logged:
            report = StepReport(step, 1.0, 1.0, {}, Refusals(0, (), 0, 0, ""), None)
            recording.training(report, 1e-3, 0.0, 0, Delays({}, []))
            recording.restart_clock(step)
        recording.advance()
    recording.close()
    return {record["step"]: record["step_seconds"] for record in read_metrics(directory.metrics)}


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("compiles", [False, True])
def test_the_first_update_of_a_start_is_no_measure_of_those_to_come(tmp_path, monkeypatch, capsys, start, compiles):
    found = recorded(tmp_path, monkeypatch, {start + 4}, start=start, compiles=compiles)
    assert found == {start + 4: SECONDS}
    said = "first update: 100.0 s, with the compilation of the layers" in capsys.readouterr().out
    assert said == compiles


def test_a_first_update_that_is_logged_says_its_own_time(tmp_path, monkeypatch):
    assert recorded(tmp_path, monkeypatch, {1, 4}, start=0, compiles=True) == {1: FIRST_SECONDS, 4: SECONDS}
