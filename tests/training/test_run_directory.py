"""The run directory's small files, and which changes of configuration a run survives."""

import dataclasses
import errno
import json
import os

import pytest

from card_scale.errors import ConfigurationError, ExitCode
from card_scale.training import exit_record
from card_scale.training.run_directory import RunDirectory
from tests.layouts.trajectory import small_config


@pytest.fixture
def directory(tmp_path):
    made = RunDirectory(tmp_path / "run")
    made.start(small_config())
    return made


def test_the_same_configuration_continues(directory):
    directory.check_same_run(small_config())


@pytest.mark.parametrize(
    "changes",
    [
        {"parallel": dict(tensor=2, pipeline=2, engine="fsdp2")},
        {"train": dict(micro_batch=2, log_every=7)},
        {"train": dict(save_every=3, keep_last=2, keep_every=6)},
        {"train": dict(steps=99)},  # the schedule is constant
        {"data": dict(path="elsewhere")},
        {"run": dict(ledger=True)},
    ],
)
def test_what_may_change(directory, changes):
    directory.check_same_run(small_config(**changes))


@pytest.mark.parametrize(
    "changes, key",
    [
        ({"model": dict(layers=8)}, "model.layers is 8, the run there has 4"),
        ({"train": dict(global_batch=16)}, "train.global_batch is 16, the run there has 8"),
        ({"objective": dict(beta=2.0)}, "objective.beta is 2.0, the run there has 1.0"),
        ({"train": dict(precision="bf16")}, "train.precision is 'bf16'"),
        ({"run": dict(seed=7)}, "run.seed is 7"),
    ],
)
def test_what_makes_it_another_run(directory, changes, key):
    with pytest.raises(ConfigurationError, match=key):
        directory.check_same_run(small_config(**changes))


SEARCHING = {"objective": dict(name="bd3lm", block=4, search_interval=True)}


@pytest.mark.parametrize(
    "changes", [{"train": dict(eval_every=2)}, {"data": dict(validation="elsewhere")}, {"data": dict(train_samples=3)}]
)
def test_evaluations_are_part_of_a_run_that_takes_over_what_they_find(directory, tmp_path, changes):
    directory.check_same_run(small_config(**changes))
    searching = RunDirectory(tmp_path / "searching")
    searching.start(small_config(**SEARCHING))
    with pytest.raises(ConfigurationError, match="belongs to another configuration"):
        searching.check_same_run(small_config(**SEARCHING, **changes))


def test_the_length_is_part_of_a_cosine_run(tmp_path):
    config = small_config(optimizer=dict(schedule="cosine"))
    directory = RunDirectory(tmp_path)
    directory.start(config)
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=99))
    with pytest.raises(ConfigurationError, match=r"train.steps is 99, the run there has 3.*run.extend=true"):
        directory.check_same_run(longer)
    extended = dataclasses.replace(longer, run=dataclasses.replace(longer.run, extend=True))
    directory.check_same_run(extended)
    # From then on the new length is the run's.
    directory.start(extended)
    directory.check_same_run(longer)
    with pytest.raises(ConfigurationError, match=r"train.steps is 3, the run there has 99"):
        directory.check_same_run(config)


def test_the_first_reason_to_fail_stays(directory):
    directory.write_exit(ExitCode.DATA, "a shard is gone")
    directory.write_exit(ExitCode.PEER_LOST, "Connection closed by peer")
    assert json.loads(directory.exit.read_text()) == {"code": 4, "reason": "a shard is gone"}
    directory.write_exit(ExitCode.HANG, "all ranks have been silent")
    assert json.loads(directory.exit.read_text())["code"] == 4
    directory.take()
    directory.write_exit(ExitCode.PEER_LOST, "Connection closed by peer")
    assert json.loads(directory.exit.read_text())["code"] == 8


def test_what_another_command_left_is_no_reason(directory):
    """Where a rank hangs before the run directory is this job's."""
    directory.write_exit(ExitCode.DONE, "done: 6 steps")
    earlier = exit_record.content(directory.exit)
    directory.write_exit(ExitCode.HANG, "timed out", earlier)
    assert json.loads(directory.exit.read_text()) == {"code": 7, "reason": "timed out"}
    directory.write_exit(ExitCode.PEER_LOST, "Connection closed by peer", earlier)
    assert json.loads(directory.exit.read_text())["code"] == 7


def test_a_record_that_the_disk_refuses_leaves_nothing(directory, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="No space"):
        directory.write_exit(ExitCode.DATA, "a shard is gone")
    assert not list(directory.path.glob("exit.json*"))
