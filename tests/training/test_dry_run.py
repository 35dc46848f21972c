"""What a dry run says: whether it fits, how long, how often; and that it refuses what the run refuses."""

import os

import pytest

from card_scale import config as configs
from card_scale.errors import ConfigurationError, DataError
from card_scale.training import preflight
from card_scale.training.dry_run import Assumptions, dry_run
from card_scale.training.run_directory import RunDirectory
from tests.training.test_resume_point import publish, write_config


@pytest.fixture
def config_file(tmp_path, dataset):
    return write_config(tmp_path, dataset)


def said(config_file, *overrides: str, **assumed) -> list[str]:
    return dry_run(configs.load(config_file, list(overrides)), Assumptions(**assumed))


def line(lines: list[str], begin: str) -> str:
    (found,) = [line for line in lines if line.startswith(begin)]
    return found


def test_whether_it_fits_stands_first(config_file):
    fits = said(config_file, device_gib=80)
    assert fits[0].startswith("fits: a rank needs about ")
    assert "of 80 GiB (stated)" in fits[0]
    too_much = said(config_file, device_gib=1e-6)
    assert too_much[0].startswith("does not fit: ")
    helps = [line for line in too_much[1:] if line.startswith("  about ")]
    assert 1 <= len(helps) <= 3
    assert too_much[1 + len(helps) :] == fits[1:]


def test_time_at_a_stated_speed(config_file):
    assert "--tokens-per-second" in line(said(config_file), "time: ")
    tokens = int(line(said(config_file), "work: ").split()[3].replace(",", ""))
    for seconds, words in ((30, "30 s"), (90 * 60, "1 h 30 min"), (50 * 3600, "2 d 2 h")):
        assert line(said(config_file, tokens_per_second=tokens / seconds), "time: ").startswith(f"time: {words} at ")


def test_epochs_and_a_warning_for_very_many(config_file):
    lines = said(config_file)
    assert line(lines, "epochs: ")
    assert not any(line.startswith("warning: ") for line in lines)
    many = line(said(config_file, "train.steps=10_000_000"), "warning: ")
    assert "epochs" in many
    assert "data.unique_tokens" in many


def test_a_warm_up_that_outlasts_the_run(config_file):
    words = line(said(config_file, "optimizer.warmup_steps=100"), "warning: ")
    assert "optimizer.warmup_steps 100" in words
    assert "steps" in words


def test_fewer_validation_samples_than_asked_for(config_file):
    assert "there are only" in line(said(config_file, "data.validation_samples=1000000"), "warning: ")
    assert line(said(config_file, "data.validation_samples=3"), "validation: ").startswith("validation: 3 of ")


def test_a_model_without_a_dataset(config_file):
    with pytest.raises(DataError):
        said(config_file, "data.path=nowhere")
    lines = said(config_file, "data.path=nowhere", vocabulary_size=50_000, device_gib=80)
    assert lines[0].startswith("fits: ")
    assert line(lines, "parameters: ")
    assert line(lines, "data: not looked at")


def test_a_vocabulary_that_the_layout_does_not_divide(config_file):
    overrides = ["parallel.tensor=3", "model.heads=3", "model.hidden=48", "model.ffn=96"]
    for vocabulary in (None, 50_000):
        with pytest.raises(ConfigurationError, match=r"padded vocabulary \d+ is not divisible by parallel.tensor 3"):
            said(config_file, *overrides, vocabulary_size=vocabulary)


def test_a_run_directory_that_cannot_be(config_file, tmp_path):
    (tmp_path / "file").write_text("")
    for below in ("file", "file/run"):
        with pytest.raises(ConfigurationError, match=rf"run\.dir {tmp_path}/{below} cannot be used: .*file is a file"):
            said(config_file, f"run.dir={tmp_path}/{below}")


def test_a_run_directory_that_cannot_be_written(config_file, tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    # The superuser, whom a test may run as, may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, _mode: path.name != "closed")
    with pytest.raises(ConfigurationError, match="closed must not be written in"):
        said(config_file, f"run.dir={tmp_path}/closed/run")


def test_nothing_is_left(config_file, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    said(config_file, f"run.dir={tmp_path}/new/run")
    assert sorted(tmp_path.rglob("*")) == before


def test_ranks_that_are_not_there(config_file):
    assert line(said(config_file), "ranks: ").startswith("ranks: 1 (")
    assert line(said(config_file, ranks=2), "ranks: ").startswith("ranks: 2 (tensor 1 x pipeline 1 x data 2)")
    with pytest.raises(ConfigurationError, match=r"3 ranks cannot hold parallel\.tensor 2"):
        said(config_file, "parallel.tensor=2", ranks=3)


def test_time_of_what_is_left_where_the_run_would_resume(config_file, dataset, tmp_path):
    begun = line(said(config_file, tokens_per_second=1000), "time: ")
    assert begun.endswith(" at 1,000 tokens/s; evaluations and saving are not in it")
    work = line(said(config_file), "work: ").split()
    steps, tokens = (int(work[place].replace(",", "")) for place in (1, 3))
    publish(RunDirectory(tmp_path / "run"), dataset)  # after 2 steps
    speed = tokens / steps  # a step a second
    words = line(said(config_file, tokens_per_second=speed), "time: ")
    assert words.startswith(f"time: {steps - 2} s at ")
    assert f" for the {steps - 2} steps left; " in words
    anew = line(said(config_file, tokens_per_second=speed, from_scratch=True), "time: ")
    assert anew.startswith(f"time: {steps} s at ")
    assert "left" not in anew
    ended = line(said(config_file, "train.steps=1", tokens_per_second=speed), "time: ")
    assert ended.startswith("time: 0 s at ")


def test_wandb_is_needed_on_every_rank(config_file, monkeypatch):
    """One writes to it; were it refused there alone, the others would wait for that one."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    for rank in (None, "0", "1"):
        if rank is not None:
            monkeypatch.setenv("RANK", rank)
        with pytest.raises(ConfigurationError, match="wandb is not installed"):
            preflight.check(configs.load(config_file, ["run.wandb=project"]), 1)
