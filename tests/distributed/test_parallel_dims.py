"""Who holds which piece: layouts that fit, and the numbers in every refusal."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from card_scale.config import Config, DataConfig, ModelConfig, ParallelConfig, TrainConfig
from card_scale.distributed.parallel_dims import Topology, plan
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
        ({}, 1, Topology(1, 1, 1)),
        ({}, 16, Topology(1, 1, 16)),
        ({"tensor": 2, "pipeline": 2}, 8, Topology(2, 2, 2)),
        ({"tensor": 2, "sequence": True}, 2, Topology(2, 1, 1, sequence=True)),
        ({"pipeline": 2, "virtual_pipeline": 2, "zero": 2}, 4, Topology(1, 2, 2, 2)),
        ({"pipeline": 2, "virtual_pipeline": 2, "engine": "fsdp2"}, 2, Topology(1, 2, 1, 2)),
        ({"pipeline": 2, "virtual_pipeline": 2, "zero": 0}, 2, Topology(1, 2, 1, 2)),
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
    assert found == Topology(tensor, pipeline, data)


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
        ({"pipeline": 2, "virtual_pipeline": 2}, 2, ["parallel.virtual_pipeline 2", "ZeRO stage 3", "fsdp2"]),
        ({"pipeline": 2, "virtual_pipeline": 2, "zero": 3}, 2, ["parallel.virtual_pipeline 2", "ZeRO stage 3"]),
        ({"zero": 0, "train": {"precision": "bf16"}}, 1, ["train.precision bf16", "ZeRO stage 0", "parallel.zero 1"]),
    ],
)
def test_refusals_name_the_numbers(settings, world, words):
    with pytest.raises(ConfigurationError) as caught:
        plan(config(**settings), world)
    for word in words:
        assert word in str(caught.value)


def test_the_stage_of_the_json_file_counts_too(tmp_path):
    path = tmp_path / "zero0.json"
    path.write_text('{"zero_optimization": {"stage": 0}}')
    bf16 = config({"precision": "bf16"}, deepspeed=str(path))
    with pytest.raises(ConfigurationError, match="ZeRO stage 0"):
        plan(bf16, 1)
    path.write_text('{"zero_optimization": {"stage": 3}}')
    interleaved = config(pipeline=2, virtual_pipeline=2, deepspeed=str(path))
    with pytest.raises(ConfigurationError, match="ZeRO stage 3"):
        plan(interleaved, 2)


@pytest.mark.parametrize(
    "topology, words",
    [
        (Topology(1, 1, 4), "tensor 1 x pipeline 1 x data 4"),
        (Topology(2, 2, 1, 1, True), "tensor 2 x pipeline 2 x data 1, sequence parallel"),
        (Topology(1, 2, 3, 2), "tensor 1 x pipeline 2 x data 3, 2 chunks per stage"),
    ],
)
def test_a_layout_in_words(topology, words):
    assert topology.describe() == words


def test_a_topology_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Topology(1, 1, 1).tensor = 2
