"""Updates, samples and whole runs that are left out, taken back or set aside, decided by all ranks alike."""

import contextlib
import errno
import io
import json
import os
import re
import shutil
import types
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from card_scale.checkpoint.reader import CheckpointReader
from card_scale.data.manifest import Manifest, load_index
from card_scale.errors import ExitCode
from tests.end_to_end.conftest import write_config
from tests.end_to_end.runs import KEEP_TWO, checked_ledger, train, train_with
from tests.end_to_end.test_train import assert_same_trajectory, records
from tests.layouts.processes import run_ranks


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
    keys = ["guard.policy=skip", "run.ledger=true", "train.log_every=0", "train.eval_every=6", "train.save_every=6"]
    config = [str(write_config(tmp_path, dataset)), *keys]
    assert run_ranks(stop_after_four_steps, 1, config, deadline=60) == [ExitCode.STOPPED]
    assert run_ranks(train, 2, config, deadline=60) == [0, 0]
    report = checked_ledger(tmp_path / "run")
    assert (report.steps, report.rows, report.skipped, report.passed_over) == (6, 40, 1, 8)
