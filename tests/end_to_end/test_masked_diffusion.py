"""MDLM and BD3-LM runs as a user starts them: records, the search of the interval, stop, resume, other layouts."""

import json
import shutil

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from card_scale.errors import ExitCode
from tests.end_to_end.conftest import write_config
from tests.end_to_end.test_train import assert_same_trajectory, records, train, train_and_stop_after_three_steps
from tests.layouts.processes import run_ranks

BD3LM = ["objective.name=bd3lm", "objective.block=8", "objective.search_interval=true", "train.eval_every=2"]
BD3LM += ["data.validation_samples=11"]
MDLM = ["objective.name=mdlm", "train.steps=4", "train.eval_every=2"]
CONFIGURED = (0.001, 1.0)


@pytest.fixture(scope="module")
def searching_run(tmp_path_factory, dataset):
    """An uninterrupted BD3-LM run on two ranks, and its configuration."""
    root = tmp_path_factory.mktemp("searching")
    path = write_config(root, dataset)
    assert run_ranks(train, 2, [str(path), *BD3LM], deadline=120) == [0] * 2
    return path, root / "run"


def interval(record: dict) -> tuple[float, float]:
    return record["bd3lm/min_mask"], record["bd3lm/max_mask"]


def state(run, step: int) -> dict:
    return json.loads((run / f"checkpoints/iter_{step:07d}/state.json").read_text())


def test_a_run_records_bound_interval_and_masks(searching_run):
    _, run = searching_run
    training, evaluations = records(run)
    assert [r["step"] for r in evaluations] == [0, 2, 4, 6]
    for evaluation in evaluations:
        assert evaluation["bound"] is True
        assert 0 < evaluation["validation_nll_standard_error"] < evaluation["validation_nll"]
        assert evaluation["bd3lm/block_loss_variance"] > 0
    # What an evaluation found holds from the next update on: every block's masked share lies in the interval, but for
    # the first token of a sample, which is given (24 tokens, blocks of 8).
    for record in training:
        low, high = interval(evaluations[(record["step"] - 1) // 2])
        assert low - 1 / 24 <= record["bd3lm/mask_ratio"] <= high
        assert record["bd3lm/loss_masked"] > 0
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    for tag in (
        "lm loss validation standard error",
        "bd3lm/min_mask",
        "bd3lm/max_mask",
        "bd3lm/block_loss_variance",
    ):
        assert [event.step for event in events.Scalars(tag)] == [0, 2, 4, 6]
    for tag in ("bd3lm/mask_ratio", "bd3lm/loss_masked"):
        assert [event.step for event in events.Scalars(tag)] == [1, 2, 3, 4, 5, 6]
    assert not {"bound", "card/loss_unweighted"} & set(events.Tags()["scalars"])


def test_checkpoints_hold_the_interval_in_force(searching_run):
    _, run = searching_run
    found = {r["step"]: interval(r) for r in records(run)[1]}
    assert found[2] != CONFIGURED
    for step in (2, 4, 6):
        assert interval(state(run, step)) == found[step]


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory, searching_run):
    """The directory of the same run, stopped between two evaluations."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    arguments = [str(searching_run[0]), f"run.dir={run}", *BD3LM]
    assert run_ranks(train_and_stop_after_three_steps, 2, arguments, deadline=90) == [ExitCode.STOPPED] * 2
    return run


@pytest.mark.parametrize("layout", [[], ["parallel.pipeline=2", "model.attention_backend=dense"]], ids=["same", "pp2"])
def test_a_stop_between_evaluations_keeps_the_interval(tmp_path, searching_run, stopped_run, layout):
    path, whole = searching_run
    run = shutil.copytree(stopped_run, tmp_path / "run")
    found = {r["step"]: interval(r) for r in records(run)[1]}
    assert interval(state(run, 3)) == found[2] != CONFIGURED
    assert run_ranks(train, 2, [str(path), f"run.dir={run}", *BD3LM, *layout], deadline=90) == [0] * 2
    assert_same_trajectory(run, whole)


def test_mdlm_makes_the_same_run_on_another_layout(tmp_path, dataset):
    path = write_config(tmp_path, dataset)
    runs = []
    for name, layout in {"data": [], "tensor": ["parallel.tensor=2", "parallel.sequence=true"]}.items():
        runs.append(tmp_path / name)
        assert run_ranks(train, 2, [str(path), f"run.dir={runs[-1]}", *MDLM, *layout], deadline=90) == [0] * 2
    assert_same_trajectory(*runs)
    training, evaluations = records(runs[0])
    assert all(r["bound"] is True and r["validation_nll_standard_error"] > 0 for r in evaluations)
    assert all(0 < r["mdlm/mask_ratio"] < 1 and r["mdlm/loss_masked"] > 0 for r in training)
    assert "bd3lm/min_mask" not in state(runs[0], 4)
