"""The result table from records written by hand: losses, passes, endings, and the fits' reader as judge."""

import csv
import json
from pathlib import Path

import pyarrow.parquet
import pytest

from card_scale.errors import ConfigurationError, DataError
from card_scale.laws import columns, table
from card_scale.laws.table_reader import read_rows
from card_scale.studies import results
from card_scale.studies import table_files as tables
from card_scale.studies.grid import load
from card_scale.studies.spec import specs
from card_scale.studies.state import Outcome, StudyDirectory
from card_scale.studies.tasks import tasks_of


@pytest.fixture
def opened(write_grid, tmp_path):
    def open_(**changes):
        grid = load(write_grid(**{"arms": {"ar": {"objective.name": "ar"}}, "epochs": [2], **changes}))
        runs = specs(grid, tmp_path)
        tasks = tasks_of(runs, tmp_path, branching=grid.schedule == "wsd-branches")
        return StudyDirectory(tmp_path), runs, tasks

    return open_


def write_records(run: str, records: list[dict]) -> None:
    directory = Path(run)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def evaluation(step: int, loss: float | None, **more) -> dict:
    return {"step": step, "samples": step * 8, "validation_nll": loss, **more}


def training(step: int, **losses: float) -> dict:
    named = {f"repetition/loss_{name}": value for name, value in losses.items()}
    return {"step": step, "samples": step * 8, "loss": 1.0 + step, **named}


RECORDS = [
    evaluation(0, 6.0),
    training(1, first_seen=5.0),
    training(4, first_seen=4.0),
    training(6, repeated=3.0),
    evaluation(6, 3.5, train_nll=3.25, **{"repetition/gap": 0.25}),
    training(10, repeated=2.0),
    evaluation(10, 3.75, train_nll=2.75, **{"repetition/gap": 1.0}),
]
"""Two epochs of 40 samples in batches of 8: ten updates."""


def test_a_finished_run(opened):
    study, runs, tasks = opened()
    (spec,) = runs
    write_records(spec.config.run.dir, RECORDS)
    study.record(tasks[0], Outcome(0, "done", attempts=2, seconds=12.34))
    (row,) = results.rows(study, runs, tasks)
    expected = {
        "status": "done",
        "exit_code": 0,
        "attempts": 2,
        "seconds": 12.3,
        "objective": "ar",
        "size": "s",
        "steps": 10,
        "tokens_D": 10 * 8 * 24,
        "unique_tokens_U": 40 * 24,
        "epochs": 2.0,
        "bound": False,
        "val_loss": 3.75,
        "best_val_loss": 3.5,
        "best_epoch": 6 * 8 / 40,
        "train_nll": 2.75,
        "gap": 1.0,
        "train_loss": 11.0,
        "loss_by_pass": [4.5, 2.5],
        "seed": 1,
        "decontaminated": False,
        "validation_tokens": 8 * 24,
        "branched_at": None,
    }
    assert {name: row[name] for name in expected} == expected
    assert row["command"].startswith(f"python -m card_scale.train {spec.base} ")
    assert row["objective.name"] == "ar"
    # Two lines of 8 of the 40 samples of a pass.
    assert [(one["pass"], one["lines"], one["covered"]) for one in results.losses_by_pass(runs)] == [
        (1, 2, 0.4),
        (2, 2, 0.4),
    ]
    curve = results.curves(runs)
    assert [(point["step"], point["epoch"], point["val_loss"]) for point in curve] == [
        (0, 0.0, 6.0),
        (6, 1.2, 3.5),
        (10, 2.0, 3.75),
    ]


def test_a_repeated_sample_is_never_of_the_first_pass(opened):
    """The fifth batch's middle lies before the end of an epoch of 40; a repeated sample in it is one of the second."""
    study, runs, tasks = opened()
    write_records(runs[0].config.run.dir, [training(5, first_seen=4.0, repeated=3.0), training(6, repeated=2.0)])
    study.record(tasks[0], Outcome(None, "", 1))
    (row,) = results.rows(study, runs, tasks)
    assert row["loss_by_pass"] == [4.0, 2.5]


def test_a_pass_without_a_log_line_is_a_hole(opened):
    """A line every 12 updates of passes of 5: in passes 3, 5, 8 and 10 of twelve."""
    study, runs, tasks = opened(epochs=[12])
    write_records(runs[0].config.run.dir, [training(step, repeated=float(step)) for step in (12, 24, 36, 48)])
    study.record(tasks[0], Outcome(None, "", 1))
    (row,) = results.rows(study, runs, tasks)
    assert row["loss_by_pass"] == [None, None, 12.0, None, 24.0, None, None, 36.0, None, 48.0]
    assert [(one["pass"], one["covered"]) for one in results.losses_by_pass(runs)] == [
        (3, 0.2),
        (5, 0.2),
        (8, 0.2),
        (10, 0.2),
    ]


def test_lines_are_weighed_by_the_samples_of_the_pass(opened):
    """40 samples in batches of 16: of the third, 8 end the first pass and 8 begin the second."""
    study, runs, tasks = opened(overrides={"train.global_batch": 16, "train.micro_batch": 16}, epochs=[2])
    records = [
        {"step": 1, "samples": 16, "loss": 1.0, "repetition/loss_first_seen": 6.0},
        {"step": 3, "samples": 48, "loss": 1.0, "repetition/loss_first_seen": 3.0, "repetition/loss_repeated": 2.0},
        {"step": 5, "samples": 80, "loss": 1.0, "repetition/loss_repeated": 5.0},
    ]
    write_records(runs[0].config.run.dir, records)
    study.record(tasks[0], Outcome(None, "", 1))
    (row,) = results.rows(study, runs, tasks)
    assert row["loss_by_pass"] == pytest.approx([(16 * 6 + 8 * 3) / 24, (8 * 2 + 16 * 5) / 24])
    assert [one["covered"] for one in results.losses_by_pass(runs)] == [0.6, 0.6]


@pytest.mark.parametrize(
    "outcome, records, status, reason",
    [
        (Outcome(6, "step 3: the loss is nan", 1), RECORDS[:3], "failed", "step 3: the loss is nan"),
        (Outcome(75, "stopped after 6 of 10", 1), RECORDS[:5], "stopped", "stopped after 6 of 10"),
        (Outcome(None, "", 1), RECORDS[:5], "stopped", ""),
        (Outcome(None, ""), [], "pending", ""),
        (Outcome(0, "done", 1), RECORDS[:5], "failed", "its records end before the evaluation after step 10"),
        (Outcome(0, "done", 1), [evaluation(10, None)], "failed", "its validation loss is not finite"),
    ],
)
def test_what_is_no_result_is_a_row_without_one(opened, outcome, records, status, reason):
    study, runs, tasks = opened()
    write_records(runs[0].config.run.dir, records)
    study.record(tasks[0], outcome)
    (row,) = results.rows(study, runs, tasks)
    assert (row["status"], row["reason"], row["val_loss"]) == (status, reason, None)


def test_what_a_trunk_failed_of_its_branches_failed_of(opened):
    study, runs, tasks = opened(schedule="wsd-branches", epochs=[1, 2])
    first = next(task for task in tasks if task.is_leg)
    study.record(first, Outcome(6, "the loss is nan", 1))
    for row in results.rows(study, runs, tasks):
        assert (row["status"], row["exit_code"]) == ("failed", 6)
        assert row["reason"] == f"its trunk {first.id} failed: the loss is nan"


def test_a_run_below_an_epoch_has_seen_less_than_the_subset(opened):
    study, runs, tasks = opened(epochs=[0.4], warmup_share=0.0)
    (row,) = results.rows(study, runs, tasks)
    assert row["tokens_D"] == row["unique_tokens_U"] == 2 * 8 * 24
    assert row["epochs"] == 1.0


def test_the_fits_read_what_was_written(opened, tmp_path):
    study, runs, tasks = opened(epochs=[2, 4], seed=[1, 2])
    for spec, task in zip(runs, tasks, strict=True):
        write_records(spec.config.run.dir, [evaluation(spec.steps, 4.0 - spec.steps / 100)])
        study.record(task, Outcome(0, "done", 1))
    rows = results.rows(study, runs, tasks)
    for path in tables.write(rows, tmp_path / "results"):
        checked = table.check(read_rows(path, {}), allow_failed=False)
        assert checked.runs.D.tolist() == [row["tokens_D"] for row in rows]
        assert checked.runs.loss.tolist() == [row["val_loss"] for row in rows]
    assert set(columns.REQUIRED) | {columns.TOKENIZER, columns.VALIDATION, columns.BOUND} <= set(rows[0])


def test_both_files_hold_the_same(tmp_path):
    rows = [{"a": 1, "b": None, "c": [1.5, 2.0], "d": "x"}, {"a": 2, "b": 0.25, "c": [], "d": "y,z"}]
    written = tables.write(rows, tmp_path / "t")
    assert pyarrow.parquet.read_table(written[1]).to_pylist() == rows
    with written[0].open() as file:
        assert list(csv.DictReader(file)) == [
            {"a": "1", "b": "", "c": "[1.5, 2.0]", "d": "x"},
            {"a": "2", "b": "0.25", "c": "[]", "d": "y,z"},
        ]
    with pytest.raises(ConfigurationError, match="no rows"):
        tables.write([], tmp_path / "t")


def test_records_that_a_kill_cut_are_read_up_to_there(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st')
    assert results.read_metrics(path) == [{"step": 1}]
    path.write_text('{"st\n{"step": 1}\n')
    with pytest.raises(DataError, match="line 1"):
        results.read_metrics(path)
    assert results.read_metrics(tmp_path / "none") == []
