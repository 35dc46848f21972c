"""Processes that die, stop or are refused by the disk at named points, and what the next start makes of it."""

import contextlib
import errno
import io
import json
import os
import re
import shutil
import signal
import threading
import time
import types
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from card_scale.checkpoint import directory as directories
from card_scale.checkpoint.format import read_manifest
from card_scale.checkpoint.reader import CheckpointReader
from card_scale.checkpoint.verify import damaged_files
from card_scale.data.ledger import read_ledger
from card_scale.data.ledger_check import LedgerReport, check_ledger
from card_scale.data.manifest import Manifest, load_index
from card_scale.errors import ExitCode
from card_scale.faults import VARIABLE
from tests.end_to_end.conftest import write_config
from tests.end_to_end.test_train import assert_same_trajectory, records, train
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


def checked_ledger(run: Path) -> LedgerReport:
    """What a run's ledger shows: that it was exact."""
    report = check_ledger(read_ledger(run / "ledger"), directories.pointed_step(run / "checkpoints"))
    assert report.is_exact, report.text()
    return report


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
    fault = "rank=1,at=step.begin,action=sleep,seconds=0.5"
    assert run_ranks(train_with, 2, fault, config, deadline=60) == [0, 0]
    training, _ = records(tmp_path / "run")
    assert all(record["stragglers/batch_ms"] > 400 for record in training)


def train_with_two_bad_batches(arguments: list[str]) -> tuple[int, str]:
    """The third and the fourth batch of the data have a loss that is no number, whatever update they are for."""
    from card_scale.data.loader import GlobalBatchLoader
    from card_scale.training import train_step

    weighted_loss, rank_batch = train_step.weighted_loss, GlobalBatchLoader.rank_batch
    batches = []

    def read(self, step, passed_over=0):
        batches.append(step + passed_over)
        return rank_batch(self, step, passed_over)

    def loss(token_losses, weights, normaliser):
        return weighted_loss(token_losses, weights, normaliser) * (float("nan") if batches[-1] in (2, 3) else 1.0)

    GlobalBatchLoader.rank_batch, train_step.weighted_loss = read, loss
    with contextlib.redirect_stderr(io.StringIO()) as said:
        return train(arguments), said.getvalue()


def train_without_two_batches(arguments: list[str]) -> int:
    from card_scale.data.loader import GlobalBatchLoader

    rank_batch = GlobalBatchLoader.rank_batch
    GlobalBatchLoader.rank_batch = lambda self, step, _: rank_batch(self, step, 2 if step >= 2 else 0)
    return train(arguments)


@pytest.mark.parametrize("beside_training", ["false", "true"])
def test_a_run_goes_back_and_passes_over_what_ruined_it(tmp_path, dataset, beside_training):
    keys = ["guard.policy=rollback", "guard.patience=1", "train.save_every=2", "train.eval_every=6", "run.ledger=true"]
    config = str(write_config(tmp_path, dataset))
    mine = [config, *keys, f"train.async_save={beside_training}"]
    (code, said), (other_code, _) = run_ranks(train_with_two_bad_batches, 2, mine, deadline=60)
    assert (code, other_code) == (0, 0)
    assert "step 4: the loss is nan" in said
    assert "2 updates in a row were not applied: going back to step 2, passing over 2 batches" in said
    clean = [config, *keys, f"run.dir={tmp_path}/clean"]
    assert run_ranks(train_without_two_batches, 2, clean, deadline=60) == [0, 0]
    last = "checkpoints/iter_0000006"
    with CheckpointReader(tmp_path / "run" / last) as found, CheckpointReader(tmp_path / "clean" / last) as expected:
        assert (found.state["passed_over_batches"], found.state["samples"]) == (2, 48)
        for name in expected.names():
            for key in expected.manifest.state_keys:
                assert found.read(name, key).equal(expected.read(name, key)), (name, key)
    training, _ = records(tmp_path / "run")
    assert [record["step"] for record in training] == [1, 2, 3, 4, 5, 6]
    assert [record["guard/passed_over_batches"] for record in training] == [0, 0, 2, 2, 2, 2]
    curves = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    assert [event.step for event in curves.Scalars("lm loss")] == [1, 2, 3, 4, 5, 6]
    # And goes on where it stands, batches included.
    assert run_ranks(train, 2, [*mine, "train.steps=7", "run.extend=true"], deadline=60) == [0, 0]
    with CheckpointReader(tmp_path / "run/checkpoints/iter_0000007") as found:
        assert found.state["passed_over_batches"] == 2
    report = checked_ledger(tmp_path / "run")
    assert (report.steps, report.rows, report.passed_over, report.attempts) == (7, 56, 16, 3)


def test_a_run_that_cannot_go_back_ends(tmp_path, dataset):
    keys = ["guard.policy=rollback", "guard.patience=0", "guard.rollbacks=1", "train.save_every=2"]
    config = [str(write_config(tmp_path, dataset)), *keys]
    codes = run_ranks(train_with, 1, "rank=0,at=loss,action=nan,step=1", config, deadline=60)
    assert codes == [ExitCode.NUMERIC]
    assert "there is no checkpoint to go back to" in (tmp_path / "run/exit.json").read_text()
    codes = run_ranks(train_with, 1, "rank=0,at=loss,action=nan,step=4", config, deadline=60)
    assert codes == [ExitCode.NUMERIC]
    assert "guard.rollbacks allows 1" in (tmp_path / "run/exit.json").read_text()


def test_skipped_updates_are_counted(tmp_path, dataset):
    config = [str(write_config(tmp_path, dataset)), "guard.policy=skip", "run.ledger=true"]
    assert run_ranks(train_with, 2, "rank=1,at=gradient,action=infinity,step=3-4", config, deadline=60) == [0, 0]
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    refused = {r["step"]: r["guard/refused_updates"] for r in lines if "guard/refused_updates" in r}
    assert refused == {1: 0, 2: 0, 3: 1, 4: 2, 5: 2, 6: 2}
    assert [record["step"] for record in records(tmp_path / "run")[0]] == [1, 2, 5, 6]
    curves = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    assert [event.value for event in curves.Scalars("guard/refused_updates")] == [0, 0, 1, 2, 2, 2]
    report = checked_ledger(tmp_path / "run")
    assert (report.steps, report.rows, report.skipped, report.passed_over) == (6, 32, 2, 16)


def damage(dataset: Path, directory: Path) -> Path:
    """Copy a dataset and flip a byte of a training document in the middle."""
    shutil.copytree(dataset, directory)
    split = Manifest.load(directory).splits["train"]
    index = load_index(directory, split)
    row = index[len(index) // 2]
    with (directory / split.shards[row["shard"]].name).open("r+b") as shard:
        shard.seek(int(row["offset"]))
        (byte,) = shard.read(1)
        shard.seek(int(row["offset"]))
        shard.write(bytes([byte ^ 1]))
    return directory


@pytest.mark.parametrize("layout", [[], ["parallel.tensor=2"]])
def test_damaged_samples_are_left_out_by_all_ranks_up_to_a_number(tmp_path, dataset, layout):
    path = damage(dataset, tmp_path / "damaged")
    # Long enough to meet every sample.
    keys = [
        f"data.path={path}",
        "model.layers=2",
        "train.steps=null",
        "data.epochs=1",
        "train.eval_every=0",
        "train.save_every=0",
    ]
    config = [str(write_config(tmp_path, dataset)), *keys, *layout]
    assert run_ranks(train, 2, config, deadline=90, expect_failure=True).count(ExitCode.DATA) >= 1
    assert "damaged at byte" in (tmp_path / "run/exit.json").read_text()
    config += [f"run.dir={tmp_path}/skipping", "run.ledger=true"]
    codes = run_ranks(train, 2, [*config, "data.skip_damaged=1"], deadline=90)
    assert codes == [ExitCode.DATA] * 2
    reason = json.loads((tmp_path / "skipping/exit.json").read_text())["reason"]
    assert re.search(r"step \d+: sample \d+: .*damaged at byte .*; \d+ samples by now, data\.skip_damaged 1", reason)
    assert run_ranks(train, 2, [*config, "data.skip_damaged=100"], deadline=90) == [0, 0]
    training, _ = records(tmp_path / "skipping")
    left_out = [record["data/left_out_samples"] for record in training]
    assert 2 <= left_out[-1] <= 100
    assert left_out == sorted(left_out)
    assert checked_ledger(tmp_path / "skipping").passed_over == left_out[-1]


def test_errors_of_the_disk_that_pass_cost_nothing(tmp_path, dataset, undisturbed):
    config = [str(write_config(tmp_path, dataset)), *KEEP_TWO]
    assert run_ranks(train_on_a_doubtful_disk, 2, config, deadline=90) == [0, 0]
    assert_same_trajectory(tmp_path / "run", undisturbed, tolerance=0)


def train_on_a_doubtful_disk(arguments: list[str]) -> int:
    from card_scale.data import shard_file

    read, reads = os.pread, []

    def doubtful(*arguments):
        reads.append(arguments)
        if len(reads) % 3 == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(*arguments)

    shard_file.DELAYS = (0.0, 0.0)
    shard_file.os = types.SimpleNamespace(**{**vars(os), "pread": doubtful})
    return train(arguments)


def test_a_run_whose_checkpoints_are_gone_is_not_begun_anew_unasked(tmp_path, dataset):
    config = [str(write_config(tmp_path, dataset))]
    assert run_ranks(train, 2, config, deadline=60) == [0, 0]
    run = tmp_path / "run"
    (run / "checkpoints").rename(tmp_path / "elsewhere")
    assert run_ranks(train, 2, config, deadline=60) == [ExitCode.CHECKPOINT] * 2
    assert "has saved checkpoints" in (run / "exit.json").read_text()
    assert "begin anew with --from-scratch" in (run / "exit.json").read_text()
    # What is there is set aside, whatever it is; another configuration may begin.
    assert run_ranks(train, 2, [*config, "--from-scratch", "run.seed=7"], deadline=60) == [0, 0]
    assert json.loads((run / "saved.json").read_text()) == {"step": 6}
    assert (run / "before-0001/metrics.jsonl").is_file()
    assert (run / "before-0001/config.yaml").is_file()
    # A restart by Slurm or torchrun goes on.
    assert run_ranks(restart_from_scratch, 2, [*config, "--from-scratch", "run.seed=7"], deadline=60) == [0, 0]
    assert sorted(path.name for path in run.glob("before-*")) == ["before-0001"]


def restart_from_scratch(arguments: list[str]) -> int:
    os.environ["SLURM_RESTART_COUNT"] = "1"
    return train(arguments)


def from_scratch_in_a_job(arguments: list[str], job: str, counts: list[int]) -> int:
    os.environ.update(TORCHELASTIC_RUN_ID=job, TORCHELASTIC_RESTART_COUNT=str(counts[int(os.environ["RANK"])]))
    return train(arguments)


def test_a_job_begins_anew_once_whatever_its_launchers_count(tmp_path, dataset):
    """torchrun does not count a restart for a change of members, and its agents may count differently."""
    run = tmp_path / "run"
    config = [str(write_config(tmp_path, dataset)), "train.steps=2", "--from-scratch"]
    assert run_ranks(train, 2, config[:2], deadline=60) == [0, 0]
    for counts in ([0, 0], [0, 0], [0, 1], [1, 1]):
        assert run_ranks(from_scratch_in_a_job, 2, config, "one", counts, deadline=60) == [0, 0]
        assert sorted(path.name for path in run.glob("before-*")) == ["before-0001"]
    assert run_ranks(from_scratch_in_a_job, 2, config, "two", [0, 0], deadline=60) == [0, 0]
    shutil.rmtree(run / "before-0001")
    assert run_ranks(from_scratch_in_a_job, 2, config, "three", [0, 0], deadline=60) == [0, 0]
    assert sorted(path.name for path in run.glob("before-*")) == ["before-0002", "before-0003"]
    other = [*config, "run.seed=8"]
    assert run_ranks(from_scratch_in_a_job, 2, other, "three", [0, 0], deadline=60) == [ExitCode.CONFIGURATION] * 2


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


def stop_after_four_steps(arguments: list[str]) -> int:
    """With a loss that is no number at the third, of which no log line tells."""
    from card_scale.training import agreement

    asked = []
    agree = agreement.agree_to_stop

    def agree_to_stop(reason):
        asked.append(reason)
        return agree("the test" if len(asked) > 5 else reason)

    agreement.agree_to_stop = agree_to_stop
    return train_with("rank=0,at=loss,action=nan,step=3", arguments)


def test_a_stop_records_what_was_refused_since_the_last_log_line(tmp_path, dataset):
    keys = ["guard.policy=skip", "run.ledger=true", "train.log_every=6", "train.eval_every=6", "train.save_every=6"]
    config = [str(write_config(tmp_path, dataset)), *keys]
    assert run_ranks(stop_after_four_steps, 1, config, deadline=60) == [ExitCode.STOPPED]
    assert run_ranks(train, 2, config, deadline=60) == [0, 0]
    report = checked_ledger(tmp_path / "run")
    assert (report.steps, report.rows, report.skipped, report.passed_over) == (6, 40, 1, 8)
