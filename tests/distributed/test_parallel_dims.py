"""Who holds which piece: layouts that fit, and the numbers in every refusal."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from card_scale.config import Config, DataConfig, ModelConfig, ParallelConfig, TrainConfig
from card_scale.distributed.parallel_dims import ParallelDims, plan
from card_scale.errors import ConfigurationError


def config(train=None, **parallel) -> Config:
    return Config(
        model=ModelConfig(layers=8, hidden=64, heads=8, ffn=128, length=16),
        data=DataConfig(path="synthetic"),
        parallel=ParallelConfig(**parallel),
        train=TrainConfig(**{"steps": 1, "global_batch": 16, "micro_batch": 1, **(train or {})}),
    )


@pytest.mark.parametrize(
    "parallel, world, expected",
    [
        ({}, 1, ParallelDims(1, 1, 1)),
        ({}, 16, ParallelDims(1, 1, 16)),
        ({"tensor": 2, "pipeline": 2}, 8, ParallelDims(2, 2, 2)),
        ({"tensor": 2, "sequence": True}, 2, ParallelDims(2, 1, 1, sequence=True)),
        ({"pipeline": 2, "virtual_pipeline": 2, "zero": 2}, 4, ParallelDims(1, 2, 2, 2)),
        ({"pipeline": 2, "virtual_pipeline": 2, "engine": "fsdp2"}, 2, ParallelDims(1, 2, 1, 2)),
        ({"pipeline": 2, "virtual_pipeline": 2, "zero": 0}, 2, ParallelDims(1, 2, 1, 2)),
    ],
)
def test_data_parallel_is_what_remains(parallel, world, expected):
    found = plan(config(**parallel), world)
    assert found == expected
    assert found.world_size == world


@given(tensor=st.integers(1, 8), pipeline=st.integers(1, 8), data=st.integers(1, 8), micro=st.integers(1, 4))
def test_every_fitting_layout_is_planned(tensor, pipeline, data, micro):
    train = {"global_batch": 3 * micro * data, "micro_batch": micro}
    found = plan(config(train, tensor=tensor, pipeline=pipeline), tensor * pipeline * data)
    assert found == ParallelDims(tensor, pipeline, data)


@pytest.mark.parametrize(
    "settings, world, words",
    [
        ({"tensor": 2}, 1, ["1 ranks", "parallel.tensor 2", "multiple of 2"]),
        ({"tensor": 2, "pipeline": 4}, 12, ["12 ranks", "parallel.tensor 2", "parallel.pipeline 4", "multiple of 8"]),
        (
            {"train": {"global_batch": 10, "micro_batch": 2}},
            4,
            ["train.global_batch 10", "train.micro_batch 2", "4 data-parallel ranks", "nearest valid: 8"],
        ),
        ({"train": {"global_batch": 1}}, 8, ["train.global_batch 1", "8 data-parallel ranks", "nearest valid: 8"]),
        (
            {"pipeline": 2, "virtual_pipeline": 2, "zero": 1, "train": {"global_batch": 3}},
            2,
            ["parallel.virtual_pipeline 2", "(3)", "parallel.pipeline 2"],
        ),
    ],
)
def test_refusals_name_the_numbers(settings, world, words):
    with pytest.raises(ConfigurationError) as caught:
        plan(config(**settings), world)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "dims, words",
    [
        (ParallelDims(1, 1, 4), "tensor 1 x pipeline 1 x data 4"),
        (ParallelDims(2, 2, 1, 1, True), "tensor 2 x pipeline 2 x data 1, sequence parallel"),
        (ParallelDims(1, 2, 3, 2), "tensor 1 x pipeline 2 x data 3, 2 chunks per stage"),
    ],
)
def test_a_layout_in_words(dims, words):
    assert dims.describe() == words


def test_the_dims_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ParallelDims(1, 1, 1).tensor = 2
