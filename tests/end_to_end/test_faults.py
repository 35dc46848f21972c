"""Processes that die, stop or are refused by the disk at named points, and what the next start makes of it."""

import contextlib
import io
import os
import time
from pathlib import Path

import pytest

from card_scale.checkpoint import directory as directories
from card_scale.checkpoint.format import read_manifest
from card_scale.checkpoint.reader import CheckpointReader
from card_scale.checkpoint.verify import damaged_files
from card_scale.errors import ExitCode
from card_scale.faults import VARIABLE
from tests.end_to_end.conftest import write_config
from tests.end_to_end.test_train import assert_same_trajectory, train
from tests.layouts.processes import run_ranks

KEEP_TWO = ["train.save_every=1", "train.keep_last=2", "train.eval_every=6"]


def train_with(fault: str, arguments: list[str]) -> int:
    os.environ[VARIABLE] = fault
    return train(arguments)


def train_and_hear(fault: str, arguments: list[str]) -> tuple[int, str]:
    with contextlib.redirect_stderr(io.StringIO()) as said:
        return train_with(fault, arguments), said.getvalue()


def assert_same_checkpoint(found: Path, expected: Path) -> None:
    """Bit for bit: the same layout made both."""
    with CheckpointReader(found) as mine, CheckpointReader(expected) as theirs:
        assert mine.state == theirs.state
        for name in theirs.names():
            for key in theirs.manifest.state_keys:
                assert mine.read(name, key).equal(theirs.read(name, key)), (name, key)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, dataset) -> Path:
    root = tmp_path_factory.mktemp("undisturbed")
    assert run_ranks(train, 2, [str(write_config(root, dataset)), *KEEP_TWO]) == [0, 0]
    return root / "run"


POINTS = [
    "checkpoint.begin",
    "checkpoint.file",
    "checkpoint.written",
    "checkpoint.manifest",
    "checkpoint.named",
    "checkpoint.pointed",
    "checkpoint.pruned",
]


@pytest.mark.parametrize("beside_training", ["false", "true"])
@pytest.mark.parametrize("point", POINTS)
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


@pytest.mark.parametrize("beside_training", ["false", "true"])
@pytest.mark.parametrize("point", ["checkpoint.file", "checkpoint.manifest"])
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
