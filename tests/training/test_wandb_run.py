"""Scalars on W&B: what it is told by a stand-in of it, and the library itself offline where it is installed."""

import importlib.util
import inspect
import sys
import threading
import types
from pathlib import Path

import pytest

from card_scale.training import wandb_run
from card_scale.training.recorder import WritingRecorder
from card_scale.training.run_directory import RunDirectory
from card_scale.training.wandb_run import WandbRecorder

EVALUATION = {"step": 3, "samples": 24, "validation_nll": 2.0, "validation_perplexity": 7.4, "bound": True}
TRAINING = {"step": 4, "samples": 32, "loss": 9.0, "loss_interval": 1.5, "lr": 1e-3}


class StandIn(types.ModuleType):
    """As much of the library as is used; ``fails``: the call that raises."""

    def __init__(self, fails=""):
        super().__init__("wandb")
        self.fails, self.runs = fails, []
        self.Settings = dict

    def init(self, **arguments):
        if self.fails == "init":
            raise ConnectionError("no route")
        self.runs.append(self)
        self.arguments, self.logged, self.axis, self.exit_code = arguments, [], None, None
        return self

    def define_metric(self, pattern, step_metric):
        self.axis = (pattern, step_metric)

    def log(self, values):
        if self.fails == "log":
            raise ValueError("too large")
        self.logged.append(values)

    def finish(self, exit_code):
        self.exit_code = exit_code


def send(path, monkeypatch, stand_in, *, is_new=True, is_bound=True, is_done=True, said=None):
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    said = [] if said is None else said
    path.mkdir(exist_ok=True)
    recorder = WandbRecorder(
        "project",
        RunDirectory(path),
        config={"optimizer.lr": 1e-3},
        is_bound=is_bound,
        is_new=is_new,
        say=said.append,
    )
    recorder.write(EVALUATION)
    recorder.write(TRAINING)
    recorder.close(is_done=is_done)
    assert not recorder._thread.is_alive()
    return said


def test_it_is_told_the_scalars_of_tensorboard_and_the_configuration(tmp_path, monkeypatch):
    wandb = StandIn()
    assert send(tmp_path / "mine", monkeypatch, wandb) == []
    assert (wandb.arguments["project"], wandb.arguments["name"]) == ("project", "mine")
    assert wandb.arguments["config"] == {"optimizer.lr": 1e-3}
    assert Path(wandb.arguments["dir"]) == tmp_path / "mine"
    assert wandb.axis == ("*", "step")
    assert wandb.logged == [
        {"step": 3, "lm loss validation bound": 2.0, "lm loss validation ppl bound": 7.4},
        {"step": 4, "lm loss bound": 1.5, "learning-rate": 1e-3},
    ]
    assert wandb.exit_code == 0


def test_a_run_that_resumes_is_the_same_one_and_a_new_one_another(tmp_path, monkeypatch):
    ids = []
    for is_new, is_done in ((True, False), (False, True), (True, True)):
        wandb = StandIn()
        send(tmp_path / "run", monkeypatch, wandb, is_new=is_new, is_done=is_done)
        ids.append(wandb.arguments["id"])
        assert wandb.arguments["resume"] == "allow"
        assert wandb.exit_code == (0 if is_done else 1)
    assert ids[0] == ids[1] != ids[2]
    assert RunDirectory(tmp_path / "run").wandb_id.read_text() == ids[2]


@pytest.mark.parametrize("fails, error", [("init", "ConnectionError: no route"), ("log", "ValueError: too large")])
def test_its_failures_are_said_once_and_reach_nobody(tmp_path, monkeypatch, fails, error):
    (said,) = send(tmp_path / "run", monkeypatch, StandIn(fails))
    assert said == f"warning: run.wandb: {error}; nothing more is sent until the next start"


def test_the_end_of_a_run_does_not_wait_for_it_for_ever(tmp_path, monkeypatch):
    wandb, released = StandIn(), threading.Event()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(wandb, "finish", lambda exit_code: released.wait(60))  # noqa: ARG005
    monkeypatch.setattr(wandb_run, "CLOSE_SECONDS", 0.01)
    said = []
    recorder = WandbRecorder("project", RunDirectory(tmp_path), config={}, is_bound=False, is_new=True, say=said.append)
    recorder.close(is_done=True)
    released.set()
    assert said == ["warning: run.wandb: not everything was sent within 0 s"]


def test_the_wait_leaves_half_of_the_time_that_torchrun_gives():
    """Of torch's 30 seconds between SIGTERM and SIGKILL."""
    from torch.distributed.elastic.multiprocessing import api

    given = inspect.signature(api.PContext.close).parameters["timeout"].default
    assert given / 2 >= wandb_run.CLOSE_SECONDS > 0


def test_the_other_records_are_closed_before_it_is_waited_for():
    closed = []

    def named(name):
        return types.SimpleNamespace(close=lambda **_: closed.append(name))

    parts = {name: named(name) for name in ("bar", "metrics", "wandb", "tensorboard")}
    WritingRecorder.close(types.SimpleNamespace(**parts, _draws=True, _is_done=True))
    assert sorted(closed) == sorted(parts)
    assert closed[-1] == "wandb"


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_the_library_itself_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    import wandb

    for is_new in (True, False):
        assert send(tmp_path / "run", monkeypatch, wandb, is_new=is_new) == []
    number = RunDirectory(tmp_path / "run").wandb_id.read_text()
    written = list((tmp_path / "run/wandb").glob(f"offline-run-*-{number}/run-{number}.wandb"))
    assert written
    assert any(b"lm loss bound" in path.read_bytes() for path in written)
