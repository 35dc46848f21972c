"""The job's own streams and batches: the order of clean tokens is a matter of the data, not of the objective."""

from pathlib import Path

import pytest
import torch

from card_scale import config as configs
from card_scale.errors import ConfigurationError
from card_scale.training import job
from card_scale.training.steps import total_steps
from tests.end_to_end.conftest import make_dataset, write_config

ARMS = {
    "ar": ["objective.name=ar"],
    "card": ["objective.name=card"],
    "card, masked anywhere, not weighted": ["objective.masking=uniform", "objective.reweight=false"],
    "mdlm": ["objective.name=mdlm"],
    "bd3lm": ["objective.name=bd3lm", "objective.block=8"],
    "another learning rate": ["objective.name=ar", "optimizer.lr=1e-5"],
    "a frozen corruption": ["objective.resample=false"],
}
REPETITION = ["data.unique_tokens=500", "data.epochs=6", "train.steps=null"]


@pytest.fixture(scope="module")
def config_path(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sample_order")
    return write_config(root, make_dataset(root / "data", seed=7))


@pytest.fixture
def one_rank(monkeypatch):
    monkeypatch.setattr(job.process_groups, "data_rank", lambda: 0)
    monkeypatch.setattr(job.process_groups, "data_group", lambda: None)
    monkeypatch.setattr(job.dist, "get_world_size", lambda _group: 1)


def batches(config_path, overrides):
    config = configs.load(config_path, [*REPETITION, *overrides])
    data = job.open_data(config)
    steps = total_steps(config, data.train.sample_count)
    with job.open_loader(config, data) as loader:
        return [loader.rank_batch(step) for step in range(steps)]


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.usefixtures("one_rank")
def test_all_arms_read_the_same_tokens_in_the_same_order(config_path, arm):
    expected, found = batches(config_path, []), batches(config_path, ARMS[arm])
    assert len(expected) == len(found) == 15  # 20 samples in batches of 8 for 6 epochs
    for one, other in zip(expected, found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.usefixtures("one_rank")
def test_a_longer_budget_has_the_same_first_epochs(config_path):
    short, long = batches(config_path, []), batches(config_path, ["data.epochs=12"])
    assert len(long) == 2 * len(short)
    for one, other in zip(short, long[: len(short)], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_more_unique_tokens_than_the_corpus_has_are_refused(config_path):
    config = configs.load(config_path, ["data.unique_tokens=100000000"])
    with pytest.raises(
        ConfigurationError, match=r"data\.unique_tokens is 100000000, but the train split of .* has \d+"
    ):
        job.open_data(config)
