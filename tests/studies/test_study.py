"""Studies end to end on real runs: interrupted, resumed, one run failing; a branch against the run trained alone."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet

from card_scale.laws import table
from card_scale.laws.table_reader import read_rows
from card_scale.studies.grid import load
from card_scale.studies.runner import LocalRunner, Machine
from card_scale.studies.spec import specs
from card_scale.studies.state import StudyDirectory
from card_scale.studies.tasks import tasks_of
from card_scale.training.stop import StopRequest

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 240


def tool(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "tools/study.py"), *arguments]


def start(command: list[str], output: Path) -> subprocess.Popen:
    with output.open("w") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)


def losses(run: Path) -> list[dict]:
    """Return a run's records without what depends on the clock, or on when the line before was written: a trunk writes
    one at its end."""
    timed = ("step_seconds", "tokens_per_second", "data/wait_ms", "loss_interval")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def test_a_study_is_stopped_and_goes_on_and_a_failed_run_is_a_row(write_grid, tmp_path):
    rules = [{"where": {"arm": "broken"}, "epochs": [2], "lr": [1e30]}]
    arms = {"ar": {"objective.name": "ar"}, "card": {"objective.name": "card"}, "broken": {"objective.name": "ar"}}
    overrides = {"optimizer.clip": 0.0}
    grid = write_grid(arms=arms, rules=rules, epochs=[30], lr=[3e-3], overrides=overrides, logs_per_epoch=1)
    study = tmp_path / "study"
    command = tool("run", str(grid), "--directory", str(study), "--at-once", "2")

    process = start(command, tmp_path / "first.log")
    end = time.monotonic() + DEADLINE
    while not list(study.glob("runs/*/metrics.jsonl")):
        assert process.poll() is None, (tmp_path / "first.log").read_text()
        assert time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE) == 75, (tmp_path / "first.log").read_text()
    with (study / "results.csv").open() as file:
        stopped = {row["status"] for row in csv.DictReader(file)}
    assert stopped <= {"stopped", "pending", "failed"}

    process = start(command, tmp_path / "second.log")
    assert process.wait(DEADLINE) == 6, (tmp_path / "second.log").read_text()
    rows = {row["objective"]: row for row in pyarrow.parquet.read_table(study / "results.parquet").to_pylist()}
    assert {name: row["status"] for name, row in rows.items()} == {"ar": "done", "card": "done", "broken": "failed"}
    assert (rows["broken"]["exit_code"], rows["broken"]["val_loss"]) == (6, None)
    assert "is nan" in rows["broken"]["reason"] or "is inf" in rows["broken"]["reason"]
    for row in (rows["ar"], rows["card"]):
        assert row["epochs"] == 30
        assert row["tokens_D"] == 30 * row["unique_tokens_U"] == row["steps"] * 8 * 24
        last = losses(Path(row["run.dir"]))[-1]
        assert row["val_loss"] == last["validation_nll"]
        assert row["gap"] == last["repetition/gap"]
        assert len(row["loss_by_pass"]) == 30
        assert row["seconds"] > 0
        assert row["commit"]
    # The table is one that the fits take, once the failed run is left out by name.
    checked = table.check(read_rows(study / "results.csv", {}), allow_failed=True, comparison=True)
    assert sorted(checked.objectives()) == ["ar", "card"]


def test_a_branch_ends_like_the_same_run_trained_alone(write_grid, tmp_path):
    arms = {"card": {"objective.name": "card"}}
    grid = load(write_grid(arms=arms, epochs=[2], schedule="wsd-branches", warmup_share=0.2, dropout=[0.1]))
    runs = specs(grid, tmp_path)
    study = StudyDirectory(tmp_path)
    tasks = tasks_of(runs, study.path, branching=True)
    machine = Machine(cores=2, memory_bytes=2**40, gpus=0)
    with StopRequest() as stop:
        outcomes = LocalRunner(study, tasks, at_once=2, machine=machine, seconds={task.id: 1.0 for task in tasks}).run(
            stop
        )
    assert {outcome.code for outcome in outcomes.values()} == {0}, outcomes
    (branch,) = runs
    alone = [o if not o.startswith("run.dir=") else f"run.dir={tmp_path / 'alone'}" for o in branch.overrides]
    command = [sys.executable, "-m", "card_scale.train", branch.base, *alone]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 0, done.stderr
    expected, found = losses(tmp_path / "alone"), losses(Path(branch.config.run.dir))
    assert found[-2:] == expected[-2:]
    assert found[-1]["step"] == branch.steps == 10
    # The trunk's checkpoint is shared, not copied.
    inside = "checkpoints/iter_0000008/manifest.json"
    trunk = next(task.directory for task in tasks if task.is_leg)
    assert (trunk / inside).stat().st_ino == (Path(branch.config.run.dir) / inside).stat().st_ino
