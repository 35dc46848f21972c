"""Which samples an evaluation reads."""

import dataclasses

import pytest
import torch.distributed as dist

from card_scale.config import DataConfig
from card_scale.distributed import process_groups
from card_scale.training import run_data
from tests.layouts.trajectory import small_config


@pytest.fixture
def opened(dataset, monkeypatch):
    """Return a function of the numbers of samples: the ids of those that one rank reads, (validation, training)."""
    monkeypatch.setattr(process_groups, "data_rank", lambda: 0)
    monkeypatch.setattr(process_groups, "data_group", lambda: None)
    monkeypatch.setattr(dist, "get_world_size", lambda _group: 1)

    def read(**numbers):
        config = dataclasses.replace(small_config(), data=DataConfig(path=str(dataset), **numbers))
        data = run_data.open_data(config)
        batches = (run_data.open_validation(config, data), run_data.open_train_samples(config, data))
        return data, *([id for batch in source for id in batch.sample_ids[batch.valid].tolist()] for source in batches)

    return read


def test_some_validation_samples_are_spread_over_the_split_and_training_samples_are_its_first(opened):
    data, validation, train = opened(validation_samples=5, train_samples=5)
    held = data.validation.sample_count
    assert held >= 10
    assert validation == [number * held // 5 for number in range(5)]
    assert train == list(range(5))


@pytest.mark.parametrize("asked", [0, 10**9])
def test_all_of_them(opened, asked):
    data, validation, train = opened(validation_samples=asked, train_samples=asked)
    assert validation == list(range(data.validation.sample_count))
    assert train == list(range(data.train.sample_count if asked else 0))
