"""Processes that die, hang or are refused by the disk at named points, and what the next start makes of it."""

import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from card_scale.checkpoint import directory as directories
from card_scale.checkpoint.format import read_manifest
from card_scale.checkpoint.verify import damaged_files
from card_scale.errors import ExitCode
from card_scale.faults import VARIABLE
from tests.end_to_end.conftest import write_config
from tests.end_to_end.runs import KEEP_TWO, assert_same_checkpoint, train, train_and_hear, train_and_watch, train_with
from tests.end_to_end.test_train import assert_same_trajectory, records
from tests.layouts.processes import run_ranks

# On the disk a point is the same whether a checkpoint is saved beside training or not: the two take turns.
POINTS = [
    ("checkpoint.begin", "true"),
    ("checkpoint.file", "false"),
    ("checkpoint.written", "true"),
    ("checkpoint.manifest", "false"),
    ("checkpoint.named", "true"),
    ("checkpoint.pointed", "false"),
    ("checkpoint.pruned", "true"),
]


@pytest.mark.parametrize("point, beside_training", POINTS)
def test_killed_while_a_checkpoint_is_written(tmp_path, dataset, undisturbed, point, beside_training):
    """The save after step 4 dies, in which the one of step 2 is pruned; that of step 3 is there, or the new one."""
    run = tmp_path / "run"
    config = [str(write_config(tmp_path, dataset)), *KEEP_TWO, f"train.async_save={beside_training}"]
    # The rank that writes, or the one that publishes.
    rank = 1 if point in ("checkpoint.file", "checkpoint.written") else 0
    fault = f"rank={rank},at={point},action=kill,step=4"
    codes = run_ranks(train_with, 2, fault, config, deadline=60, expect_failure=True)
    assert codes[rank] == "died without a word"
    assert codes[1 - rank] == ExitCode.PEER_LOST
    root = run / "checkpoints"
    published = directories.published_steps(root)
    done = 4 if point in ("checkpoint.pointed", "checkpoint.pruned") else 3
    assert directories.pointed_step(root) == done
    assert directories.find_latest(root)[1].step == done
    for known in published:
        path = root / directories.name_of(known)
        assert damaged_files(path, read_manifest(path).files) == []
    assert run_ranks(train, 2, config, deadline=60) == [0, 0]
    assert sorted(path.name for path in root.glob("iter_*")) == ["iter_0000005", "iter_0000006"]
    assert_same_trajectory(run, undisturbed, tolerance=0)
    assert_same_checkpoint(root / "iter_0000006", undisturbed / "checkpoints/iter_0000006")


@pytest.mark.parametrize("point", ["start", "data.batch", "step.forward", "step.backward", "step.update", "evaluation"])
def test_killed_between_checkpoints(tmp_path, dataset, undisturbed, point):
    config = [str(write_config(tmp_path, dataset)), *KEEP_TWO]
    step = {"start": "", "evaluation": ",step=6"}.get(point, ",step=4")
    begin = time.monotonic()
    codes = run_ranks(train_with, 2, f"rank=1,at={point},action=kill{step}", config, deadline=60, expect_failure=True)
    assert (codes[0], codes[1]) == (ExitCode.PEER_LOST, "died without a word")
    assert time.monotonic() - begin < 50
    assert run_ranks(train, 2, config, deadline=60) == [0, 0]
    assert_same_trajectory(tmp_path / "run", undisturbed, tolerance=0)
    last = "checkpoints/iter_0000006"
    assert_same_checkpoint(tmp_path / "run" / last, undisturbed / last)


@pytest.mark.parametrize("point, beside_training", [("checkpoint.file", "true"), ("checkpoint.manifest", "false")])
def test_a_full_disk_costs_a_checkpoint_not_the_run(tmp_path, dataset, undisturbed, point, beside_training):
    config = [str(write_config(tmp_path, dataset)), *KEEP_TWO, f"train.async_save={beside_training}"]
    rank = 1 if point == "checkpoint.file" else 0
    fault = f"rank={rank},at={point},action=enospc,step=4"
    (code, said), (other_code, _) = run_ranks(train_and_hear, 2, fault, config, deadline=60)
    assert (code, other_code) == (0, 0)
    assert said.count("cannot be saved: [Errno 28] No space left on device; training goes on") == 1
    root = tmp_path / "run/checkpoints"
    assert sorted(path.name for path in root.glob("iter_*")) == ["iter_0000005", "iter_0000006"]
    assert_same_trajectory(tmp_path / "run", undisturbed, tolerance=0)
    assert_same_checkpoint(root / "iter_0000006", undisturbed / "checkpoints/iter_0000006")


@pytest.mark.parametrize("beside_training", ["false", "true"])
def test_a_disk_that_stays_full_ends_the_run(tmp_path, dataset, beside_training):
    config = [str(write_config(tmp_path, dataset)), "train.save_every=1", f"train.async_save={beside_training}"]
    fault = "rank=1,at=checkpoint.written,action=enospc,step=2-6"
    codes = run_ranks(train_with, 2, fault, config, deadline=60)
    assert codes == [ExitCode.CHECKPOINT] * 2
    root = tmp_path / "run/checkpoints"
    assert sorted(path.name for path in root.glob("iter_*")) == ["iter_0000001"]
    # What must be saved is not borne at all.
    codes = run_ranks(train_with, 2, "rank=1,at=checkpoint.written,action=enospc,step=6", config, deadline=60)
    assert codes == [ExitCode.CHECKPOINT] * 2
    assert directories.find_latest(root)[1].step == 5
    assert run_ranks(train, 2, config, deadline=60) == [0, 0]


def test_an_exception_of_one_rank_ends_the_others_soon(tmp_path, dataset):
    config = [str(write_config(tmp_path, dataset))]
    begin = time.monotonic()
    fault = "rank=1,at=step.backward,action=exception,step=3"
    codes = run_ranks(train_with, 2, fault, config, deadline=60, expect_failure=True)
    assert codes[0] == ExitCode.PEER_LOST
    assert "fault on purpose at step.backward" in codes[1]
    assert time.monotonic() - begin < 50
    assert "fault on purpose at step.backward" in (tmp_path / "run/exit.json").read_text()


@pytest.mark.parametrize(
    "fault, reason",
    [
        (
            "at=step.forward,action=stop",
            r"rank 1 \(process \d+ on .*\) gave no sign of life: .* step 3, limit of 6",
        ),
        ("at=step.backward,action=sleep,seconds=60", "rank 1 hangs in the step phase of step 3 for 6 s"),
        ("at=data.batch,action=sleep,seconds=60", "rank 1 hangs in the data phase of step 3 for 4 s"),
    ],
)
def test_a_rank_that_hangs_is_named(tmp_path, dataset, fault, reason):
    limits = ["run.timeout_seconds=40", "watchdog.data=4", "watchdog.step=6"]
    config = [str(write_config(tmp_path, dataset)), *KEEP_TWO, *limits]
    run_ranks(train_with, 2, f"rank=1,step=3,{fault}", config, deadline=60, expect_failure=True)
    ended = json.loads((tmp_path / "run/exit.json").read_text())
    assert ended["code"] == ExitCode.HANG
    assert re.match(reason, ended["reason"])
    assert run_ranks(train, 2, config, deadline=60) == [0, 0]


def test_a_straggler_is_reported_and_not_killed(tmp_path, dataset):
    config = [str(write_config(tmp_path, dataset)), *KEEP_TWO, "train.log_every=3"]
    # The first update is late by far more, and tells nothing of those after it.
    fault = "rank=1,at=step.begin,action=sleep,seconds=0.5;rank=1,at=step.begin,action=sleep,seconds=4,step=1"
    (code, shown), _ = run_ranks(train_and_watch, 2, fault, config, deadline=60)
    training, _ = records(tmp_path / "run")
    assert code == 0
    assert all(400 < record["stragglers/batch_ms"] < 1500 for record in training)
    assert shown.count("rank 1 has its batch") == len(training)


@pytest.mark.parametrize("beside_training", ["false", "true"])
def test_what_fails_after_a_checkpoint_is_published_costs_nothing(tmp_path, dataset, undisturbed, beside_training):
    config = [str(write_config(tmp_path, dataset)), *KEEP_TWO, f"train.async_save={beside_training}"]
    fault = "rank=0,at=checkpoint.pruned,action=eio,step=4"
    assert run_ranks(train_with, 2, fault, config, deadline=60) == [0, 0]
    names = sorted(path.name for path in (tmp_path / "run/checkpoints").glob("iter_*"))
    assert names == ["iter_0000005", "iter_0000006"]
    assert_same_trajectory(tmp_path / "run", undisturbed, tolerance=0)


def stop_while_saving(arguments: list[str]) -> int:
    """Ask for a stop as soon as a save is in flight, which takes longer than an update may."""
    os.environ[VARIABLE] = "rank=1,at=checkpoint.written,action=sleep,seconds=9,step=2"
    if os.environ["RANK"] == "0":
        threading.Thread(target=_stop_at, args=(arguments[-1].removeprefix("run.dir="),), daemon=True).start()
    return train(arguments)


def _stop_at(run: str) -> None:
    while not list(Path(run).glob("checkpoints/iter_0000002.tmp-*")):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_stop_waits_for_a_save_longer_than_an_update_may_take(tmp_path, dataset):
    limits = ["run.timeout_seconds=40", "watchdog.data=3", "watchdog.step=5"]
    saves = ["train.async_save=true", "train.save_every=2", "train.eval_every=6"]
    config = [str(write_config(tmp_path, dataset)), *limits, *saves, f"run.dir={tmp_path}/run"]
    assert run_ranks(stop_while_saving, 2, config, deadline=60) == [ExitCode.STOPPED] * 2
    assert directories.find_latest(tmp_path / "run/checkpoints")[1].step >= 2
