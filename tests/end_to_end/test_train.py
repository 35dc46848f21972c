"""The main job as a user runs it: records, stop and resume, faults on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from card_scale import config as configs
from card_scale.data.manifest import Manifest
from card_scale.errors import ExitCode
from card_scale.faults import VARIABLE
from card_scale.training.run_lock import RunLock
from tests.end_to_end.conftest import write_config
from tests.end_to_end.runs import train
from tests.layouts.processes import run_ranks

FOUR_RANKS = ["parallel.pipeline=2"]
OTHER_LAYOUTS = {
    "tp2 dp2 fsdp2": ["parallel.tensor=2", "parallel.sequence=true", "parallel.engine=fsdp2", "parallel.zero=null"],
    "pp2 dp2 zero1, other micro-batch": ["parallel.pipeline=2", "parallel.zero=1", "train.micro_batch=1"],
}


def train_and_signal(arguments: list[str], rank: int, number: int, metrics: str, lines: int) -> int:
    """Train; on one rank send this process a signal once metrics.jsonl has so many training lines."""
    if int(os.environ["RANK"]) == rank:
        threading.Thread(target=_signal_after, args=(number, Path(metrics), lines), daemon=True).start()
    return train(arguments)


def _signal_after(number: int, metrics: Path, lines: int) -> None:
    while not metrics.is_file() or sum('"loss"' in line for line in metrics.read_text().splitlines()) < lines:
        time.sleep(0.01)
    os.kill(os.getpid(), number)


def records(run: Path) -> tuple[list[dict], list[dict]]:
    """Return (training, evaluation) records."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [r for r in found if "loss" in r], [r for r in found if "validation_nll" in r]


TIMES = {"step_seconds", "tokens_per_second", "data/wait_ms", "stragglers/batch_ms", "world_size"}


def assert_same_trajectory(found: Path, expected: Path, tolerance: float = 1e-5) -> None:
    for mine, theirs in zip(records(found), records(expected), strict=True):
        assert [r["step"] for r in mine] == [r["step"] for r in theirs]
        for one, other in zip(mine, theirs, strict=True):
            kept = {key: value for key, value in one.items() if key not in TIMES}
            assert kept == pytest.approx({k: v for k, v in other.items() if k not in TIMES}, rel=tolerance)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, dataset):
    """An uninterrupted run on four ranks, and the configuration that the other runs share."""
    root = tmp_path_factory.mktemp("whole")
    path = write_config(root, dataset)
    assert run_ranks(train, 4, [str(path), *FOUR_RANKS], deadline=120) == [0] * 4
    return path, root / "run"


def test_a_run_leaves_what_the_contract_says(whole_run, dataset):
    _, run = whole_run
    training, evaluations = records(run)
    assert [r["step"] for r in training] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in evaluations] == [0, 3, 6]
    first = training[0]
    assert first["tokens"] == 8 * 24
    assert first["samples"] == 8
    assert {"epoch", "loss", "lr", "grad_norm", "step_seconds", "tokens_per_second"} <= first.keys()
    assert training[-1]["loss"] < first["loss"]
    final = evaluations[-1]
    assert final["validation_nll"] < evaluations[0]["validation_nll"]
    assert {f"card/validation_nll_masked_{k}" for k in range(1, 9)} <= final.keys()
    assert "card/validation_nll_noise_0.5" in final
    assert "ema/validation_nll" in final
    assert json.loads((run / "exit.json").read_text())["code"] == 0
    assert configs.load(run / "config.yaml", []).parallel.pipeline == 2
    assert "torch" in json.loads((run / "environment.json").read_text())["versions"]
    checkpoints = run / "checkpoints"
    assert (checkpoints / "latest_checkpointed_iteration.txt").read_text() == "6\n"
    assert sorted(p.name for p in checkpoints.glob("iter_*")) == ["iter_0000002", "iter_0000004", "iter_0000006"]
    state = json.loads((checkpoints / "iter_0000006/state.json").read_text())
    assert state["validation_digest"] == Manifest.load(dataset).digest
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("lm loss")] == [1, 2, 3, 4, 5, 6]
    assert [e.step for e in events.Scalars("lm loss validation")] == [0, 3, 6]


def test_running_it_again_says_that_it_is_done(whole_run):
    path, run = whole_run
    before = (run / "metrics.jsonl").read_bytes()
    left_by_a_kill = run / "checkpoints/iter_0000009.tmp-01234567"
    left_by_a_kill.mkdir()
    assert run_ranks(train, 4, [str(path), *FOUR_RANKS], deadline=60) == [0] * 4
    assert "already done" in json.loads((run / "exit.json").read_text())["reason"]
    assert (run / "metrics.jsonl").read_bytes() == before
    assert not left_by_a_kill.exists()


def test_a_run_that_ends_where_it_was_stopped_is_evaluated(whole_run, tmp_path):
    """Its last evaluation is missing: a stop is saved without one."""
    path, whole = whole_run
    run = shutil.copytree(whole, tmp_path / "run")
    *kept, last = (run / "metrics.jsonl").read_text().splitlines()
    assert "validation_nll" in json.loads(last)
    (run / "metrics.jsonl").write_text("".join(f"{line}\n" for line in kept))
    assert run_ranks(train, 4, [str(path), *FOUR_RANKS, f"run.dir={run}"], deadline=60) == [0] * 4
    assert "done: 6 steps" in json.loads((run / "exit.json").read_text())["reason"]
    *again, anew = (run / "metrics.jsonl").read_text().splitlines()
    assert again == kept
    expected = json.loads(last)
    assert json.loads(anew) == {
        key: pytest.approx(value, rel=1e-5) if isinstance(value, float) else value for key, value in expected.items()
    }


GOES_ON_IN = dict(zip((signal.SIGTERM, signal.SIGINT), reversed(OTHER_LAYOUTS), strict=True))
"""Where a run goes on that a signal stopped; what a third signal stops is stopped alike."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_one_rank_stops_all_and_the_run_goes_on_elsewhere(tmp_path, whole_run, number):
    path, whole = whole_run
    run = tmp_path / "run"
    arguments = [str(path), f"run.dir={run}", *FOUR_RANKS]
    codes = run_ranks(train_and_signal, 4, arguments, 3, number, str(run / "metrics.jsonl"), 3, deadline=90)
    assert codes == [ExitCode.STOPPED] * 4
    assert json.loads((run / "exit.json").read_text())["code"] == 75
    stopped_at = int((run / "checkpoints/latest_checkpointed_iteration.txt").read_text())
    assert 3 <= stopped_at < 6
    reason = json.loads((run / "exit.json").read_text())["reason"]
    assert f"stopped after {stopped_at} of 6 steps on {number.name};" in reason, "what the other rank was sent"
    if number not in GOES_ON_IN:
        return
    layout = OTHER_LAYOUTS[GOES_ON_IN[number]]
    assert run_ranks(train, 4, [str(path), f"run.dir={run}", *layout], deadline=90) == [0] * 4
    assert_same_trajectory(run, whole)
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("lm loss")] == [1, 2, 3, 4, 5, 6]


def train_and_touch(arguments: list[str], file: str, metrics: str) -> int:
    """Train; make a file once metrics.jsonl has two training lines."""

    def touch() -> None:
        while not Path(metrics).is_file() or Path(metrics).read_text().count('"loss"') < 2:
            time.sleep(0.01)
        Path(file).touch()

    if os.environ["RANK"] == "1":
        threading.Thread(target=touch, daemon=True).start()
    return train(arguments)


def test_a_file_and_the_end_of_the_time_stop_a_run(tmp_path, config_file):
    run = tmp_path / "run"
    arguments = [str(config_file), "train.steps=3000", "train.save_every=0", "optimizer.schedule=constant"]
    codes = run_ranks(train_and_touch, 2, arguments, str(run / "STOP"), str(run / "metrics.jsonl"), deadline=90)
    assert codes == [ExitCode.STOPPED] * 2
    assert f"on the file {run / 'STOP'}; run the same" in json.loads((run / "exit.json").read_text())["reason"]
    stopped_at = int((run / "checkpoints/latest_checkpointed_iteration.txt").read_text())
    assert 2 <= stopped_at < 3000
    # The file was for that command; the next one goes on until its own limit.
    assert run_ranks(train, 1, [*arguments, "run.max_hours=1e-9"], deadline=90) == [ExitCode.STOPPED]
    assert not (run / "STOP").exists()
    reason = json.loads((run / "exit.json").read_text())["reason"]
    assert reason == f"stopped after {stopped_at} of 3000 steps on run.max_hours 1e-09; run the same command to go on"


@pytest.mark.parametrize("layout", OTHER_LAYOUTS)
def test_another_layout_makes_the_same_run(tmp_path, whole_run, layout):
    path, whole = whole_run
    arguments = [str(path), f"run.dir={tmp_path / 'run'}", "train.keep_last=2", *OTHER_LAYOUTS[layout]]
    assert run_ranks(train, 4, arguments, deadline=90) == [0] * 4
    assert_same_trajectory(tmp_path / "run", whole)
    kept = sorted(path.name for path in (tmp_path / "run/checkpoints").glob("iter_*"))
    assert kept == ["iter_0000004", "iter_0000006"]


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(tmp_path, config_file):
    codes = run_ranks(train, 2, [str(config_file), "optimizer.lr=1e30", "optimizer.warmup_steps=0"], deadline=60)
    assert codes == [ExitCode.NUMERIC] * 2
    exit_record = json.loads((tmp_path / "run/exit.json").read_text())
    assert exit_record["code"] == 6
    assert "step" in exit_record["reason"]
    assert exit_record["reason"].endswith("; nothing has been saved")
    assert os.listdir(tmp_path / "run/checkpoints") == []


@pytest.mark.parametrize(
    "options",
    [
        # The last update of a run, whose loss and gradient were fine.
        ["train.steps=1"],
        # Updates that are saved but not evaluated.
        ["train.save_every=1", "train.eval_every=0"],
        ["train.save_every=1", "train.eval_every=0", "train.log_every=50"],
    ],
    ids=["last", "not evaluated", "not logged"],
)
def test_weights_that_an_update_has_ruined_are_never_saved(tmp_path, config_file, options):
    arguments = [str(config_file), "optimizer.lr=1e30", "optimizer.warmup_steps=0", "parallel.pipeline=2", *options]
    assert run_ranks(train, 2, arguments, deadline=60) == [ExitCode.NUMERIC] * 2
    reason = json.loads((tmp_path / "run/exit.json").read_text())["reason"]
    assert reason.startswith("step 1: ")
    assert reason.endswith("; nothing has been saved")
    assert not list((tmp_path / "run/checkpoints").glob("iter_*"))


def test_a_run_that_is_ruined_says_what_it_goes_on_from(tmp_path, config_file):
    quiet = ["train.eval_every=0", "train.save_every=1", "optimizer.schedule=constant", "optimizer.warmup_steps=0"]
    assert run_ranks(train, 1, [str(config_file), *quiet, "train.steps=2"], deadline=60) == [0]
    quiet[0] = "train.eval_every=1"
    config = [str(config_file), *quiet, "train.steps=4"]
    assert run_ranks(train_on_ruined_weights, 1, config, deadline=60) == [ExitCode.NUMERIC]
    reason = json.loads((tmp_path / "run/exit.json").read_text())["reason"]
    assert "validation_nll is nan" in reason
    assert reason.endswith("; the checkpoint after 2 steps is intact")
    assert run_ranks(train, 1, config, deadline=60) == [0]


def train_on_ruined_weights(arguments: list[str]) -> int:
    """The first update writes weights that are not finite."""
    from card_scale.engine.optimizer import AdamW

    original = AdamW.step

    def ruin(self, closure=None):
        result = original(self, closure)
        for group in self.param_groups:
            for weight in group["params"]:
                weight.data.fill_(float("nan"))
        return result

    AdamW.step = ruin
    return train(arguments)


def test_a_second_job_in_the_run_directory_is_refused(tmp_path, config_file):
    run = tmp_path / "run"
    with RunLock(run):
        assert run_ranks(train, 2, [str(config_file)], deadline=60) == [ExitCode.CONFIGURATION] * 2
        assert run_ranks(train, 1, [str(config_file), "--dry-run"], deadline=60) == [ExitCode.CONFIGURATION]
        assert os.listdir(run) == ["run.lock"], "what the other job writes is not touched"
    assert run_ranks(train, 1, [str(config_file), "train.steps=1"], deadline=60) == [0]
    assert not (run / "run.lock").exists()


def test_tasks_of_srun_are_ranks_of_one_run(tmp_path, config_file):
    """Without torchrun: each would train alone in the same directory."""
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_ID": "0"}
    step |= {"SLURM_JOB_ID": str(os.getpid()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "card_scale.train", str(config_file), "train.steps=1", "parallel.tensor=2"]
    # Processes that have imported nothing yet, under what makes libraries warn: their warnings are silenced by name.
    command += ["parallel.engine=fsdp2", "parallel.zero=null", "objective.name=bd3lm", "objective.block=8"]
    command += ["optimizer.warmup_steps=0"]  # more than the one step would be warned of
    # A process that has read nothing yet is late once, which is not worth a word.
    step[VARIABLE] = "rank=0,at=step.begin,action=sleep,seconds=0.5,step=1"
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "MASTER_PORT")}
    ranks = [
        subprocess.Popen(
            command,
            env=kept | step | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], printed
    assert "layout: tensor 2" in printed[0]
    assert "attention: split, " in printed[0]
    assert printed[1] == "", "the main rank speaks"
    assert not [line for line in printed[0].splitlines() if "warn" in line.lower()]
    assert len(records(tmp_path / "run")[0]) == 1


def test_a_rank_without_a_number_is_refused(config_file):
    command = [sys.executable, "-m", "card_scale.train", str(config_file)]
    kept = {name: value for name, value in os.environ.items() if name != "RANK"}
    refused = subprocess.run(
        command, env=kept | {"WORLD_SIZE": "2"}, capture_output=True, text=True, timeout=60, check=False
    )
    assert refused.returncode == ExitCode.CONFIGURATION
    assert "WORLD_SIZE is 2, but RANK is not set" in refused.stderr
    assert "Traceback" not in refused.stderr


def train_and_die(arguments: list[str], metrics: str) -> int:
    if os.environ["RANK"] == "1":
        threading.Thread(target=_signal_after, args=(signal.SIGKILL, Path(metrics), 2), daemon=True).start()
    return train(arguments)


def test_the_loss_of_a_peer_ends_the_others(tmp_path, config_file):
    metrics = str(tmp_path / "run/metrics.jsonl")
    results = run_ranks(
        train_and_die, 2, [str(config_file), "train.steps=500"], metrics, deadline=60, expect_failure=True
    )
    assert results[0] == ExitCode.PEER_LOST
    assert json.loads((tmp_path / "run/exit.json").read_text())["code"] == 8


def train_on_shifted_data(arguments: list[str]) -> int:
    """One rank of a pipeline reads another order, as a wrong splitter would make it."""
    from card_scale.data import loader

    if os.environ["RANK"] == "1":
        order = loader.epoch_order
        loader.epoch_order = lambda seed, epoch, count: order(seed + 1, epoch, count)
    return train(arguments)


def test_ranks_of_one_replica_with_different_data_stop(tmp_path, config_file):
    codes = run_ranks(train_on_shifted_data, 2, [str(config_file), "parallel.pipeline=2"], deadline=60)
    assert codes == [ExitCode.DATA] * 2
    assert "different batches" in json.loads((tmp_path / "run/exit.json").read_text())["reason"]


def train_and_stop_after_three_steps(arguments: list[str]) -> int:
    """Let the first evaluation and three steps pass, then ask for a stop."""
    from card_scale.training import agreement

    answers = iter([None, None, None, None, "a test"])
    agreement.agree_to_stop = lambda reason: next(answers)  # noqa: ARG005
    return train(arguments)


def test_a_stop_never_saves_weights_that_are_not_finite(tmp_path, config_file):
    quiet = ["train.log_every=1000", "train.eval_every=0", "train.save_every=0", "train.steps=500"]
    arguments = [str(config_file), "optimizer.lr=1e30", "optimizer.warmup_steps=0", *quiet]
    assert run_ranks(train_and_stop_after_three_steps, 2, arguments, deadline=60) == [ExitCode.NUMERIC] * 2
    assert not list((tmp_path / "run/checkpoints").glob("iter_*"))
