"""DeepSpeed's JSON file: what is filled in, and what contradicts the run."""

import json
from pathlib import Path

import pytest

from card_scale.config import Config, DataConfig, ModelConfig, OptimizerConfig, ParallelConfig, TrainConfig
from card_scale.engine.deepspeed import settings as deepspeed_json
from card_scale.errors import ConfigurationError

FILES = sorted((Path(__file__).parents[2] / "ds_configs").glob("*.json"))


def config(path=None, zero=None, precision="fp32") -> Config:
    return Config(
        model=ModelConfig(hidden=192),
        data=DataConfig(path="synthetic"),
        parallel=ParallelConfig(zero=zero, deepspeed=None if path is None else str(path)),
        optimizer=OptimizerConfig(clip=0.7),
        train=TrainConfig(steps=1, global_batch=24, micro_batch=2, precision=precision),
    )


@pytest.fixture
def write(tmp_path):
    """Function that writes the content as JSON (text as it stands) and returns the path."""

    def write_file(content) -> Path:
        path = tmp_path / "settings.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write_file


def leaves(tree, path=()):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def test_the_repository_holds_the_four_files():
    assert [file.name for file in FILES] == ["zero1.json", "zero2.json", "zero3.json", "zero3_offload.json"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_file_is_filled_from_the_run(file, precision):
    resolved = deepspeed_json.resolve(config(file, precision=precision), 4, 1_000_000)
    assert not [path for path, value in leaves(resolved) if value == "auto"]
    assert resolved["zero_optimization"]["stage"] == json.loads(file.read_text())["zero_optimization"]["stage"]
    assert resolved["train_micro_batch_size_per_gpu"] == 2
    assert resolved["gradient_clipping"] == 0.7
    assert resolved.get("bf16", {}).get("enabled", False) == (precision == "bf16")
    assert deepspeed_json.zero_stage(config(file)) == resolved["zero_optimization"]["stage"]


def test_deepspeed_accepts_what_is_resolved():
    """Every key that may stand in a file is one of DeepSpeed's, and so is every key that is filled in."""
    zero_config = pytest.importorskip("deepspeed.runtime.zero.config")
    fields = zero_config.DeepSpeedZeroConfig.model_fields
    known = set(fields) | {field.alias for field in fields.values() if field.alias}
    assert known >= deepspeed_json.ALLOWED_ZERO_KEYS
    for file in FILES:
        resolved = deepspeed_json.resolve(config(file), 1, 1000)["zero_optimization"]
        assert set(resolved) <= known
        zero_config.DeepSpeedZeroConfig(**resolved)


@pytest.mark.parametrize("zero, stage", [(None, 3), (0, 0), (1, 1), (2, 2), (3, 3)])
def test_without_a_file(zero, stage):
    resolved = deepspeed_json.resolve(config(zero=zero), 2, 1000)
    assert resolved["zero_optimization"]["stage"] == stage
    assert resolved["gradient_accumulation_steps"] == 1
    assert resolved["managed_gradient_accumulation"] is False


def test_automatic_values(write):
    automatic = dict.fromkeys(
        (
            "reduce_bucket_size",
            "allgather_bucket_size",
            "stage3_prefetch_bucket_size",
            "stage3_param_persistence_threshold",
            "overlap_comm",
        ),
        "auto",
    )
    path = write({"zero_optimization": {"stage": "auto", **automatic}})
    resolved = deepspeed_json.resolve(config(path), 2, 1234)["zero_optimization"]
    # A bucket need not be larger than the stage's weights; ten rows of the model stay gathered (norms, not matrices).
    assert resolved["reduce_bucket_size"] == resolved["allgather_bucket_size"] == 1234
    assert resolved["stage3_prefetch_bucket_size"] == 1234
    assert resolved["stage3_param_persistence_threshold"] == 1920
    assert resolved["stage"] == 3
    large = deepspeed_json.resolve(config(path), 2, 10**11)["zero_optimization"]
    assert (large["reduce_bucket_size"], large["stage3_prefetch_bucket_size"]) == (500_000_000, 50_000_000)


def test_values_of_the_file_win_over_automatic_ones(write):
    path = write({"zero_optimization": {"stage": 2, "reduce_bucket_size": 77}, "wall_clock_breakdown": True})
    resolved = deepspeed_json.resolve(config(path), 2, 1000)
    assert resolved["zero_optimization"]["reduce_bucket_size"] == 77
    assert resolved["wall_clock_breakdown"] is True


@pytest.mark.parametrize(
    "content",
    [
        {"train_batch_size": 24},
        {"train_micro_batch_size_per_gpu": 2},
        {"gradient_accumulation_steps": 3},
        {"gradient_clipping": 0.7},
        {"bf16": {"enabled": False}},
        {"zero_optimization": {"stage": 2}},
        {"zero_allow_untested_optimizer": True},
        {"zero_allow_untested_optimizer": "auto"},
        {},
    ],
)
def test_the_runs_own_values_may_stand_in_the_file(write, content):
    """24 sequences / (2 per rank x 4 ranks) are 3 micro-batches."""
    assert deepspeed_json.resolve(config(write(content)), 4, 1000)["train_micro_batch_size_per_gpu"] == 2


@pytest.mark.parametrize(
    "content, zero, words",
    [
        ({"train_batch_size": 32}, None, ["train_batch_size is 32", "train.global_batch is 24"]),
        ({"train_micro_batch_size_per_gpu": 4}, None, ["train_micro_batch_size_per_gpu is 4", "micro_batch is 2"]),
        ({"gradient_accumulation_steps": 8}, None, ["gradient_accumulation_steps is 8", "4 data-parallel", "is 3"]),
        ({"gradient_clipping": 1.0}, None, ["gradient_clipping is 1.0", "optimizer.clip is 0.7"]),
        ({"bf16": {"enabled": True}}, None, ["bf16.enabled is True", "train.precision fp32 is False"]),
        ({"zero_optimization": {"stage": 2}}, 3, ["zero_optimization.stage is 2", "parallel.zero is 3"]),
        ({"zero_optimization": {"stage": 3}}, 0, ["zero_optimization.stage is 3", "parallel.zero is 0"]),
        ({"zero_optimization": {"stage": 4}}, None, ["zero_optimization.stage is 4", "0, 1, 2, 3"]),
        ({"zero_optimization": {"stage": "3"}}, None, ["zero_optimization.stage is '3'", "0, 1, 2, 3"]),
        ({"zero_optimization": 3}, None, ["zero_optimization is 3", "not a JSON object"]),
        ({"bf16": "auto"}, None, ["bf16 is 'auto'", "not a JSON object"]),
        ({"zero_allow_untested_optimizer": False}, None, ["zero_allow_untested_optimizer is False", "true or auto"]),
        ({"fp16": {"enabled": True}}, None, ["'fp16' is not supported", "did you mean bf16?"]),
        ({"optimizer": {"type": "Adam"}}, None, ["'optimizer' is not supported", "valid:", "gradient_clipping"]),
        ({"zero_optimisation": {}}, None, ["'zero_optimisation'", "did you mean zero_optimization?"]),
        (
            {"zero_optimization": {"reduce_bucketsize": 5}},
            None,
            ["zero_optimization.reduce_bucketsize", "did you mean reduce_bucket_size?"],
        ),
        ({"zero_optimization": {"round_robin_gradients": True}}, 2, ["round_robin_gradients is not supported"]),
        ({"zero_optimization": {"sub_group_size": "auto"}}, None, ['sub_group_size is "auto"', "reduce_bucket_size"]),
        ("{", None, ["cannot be read"]),
        ("[1]", None, ["holds list", "not a JSON object"]),
    ],
)
def test_contradictions_name_file_key_and_both_values(write, content, zero, words):
    path = write(content)
    with pytest.raises(ConfigurationError) as caught:
        deepspeed_json.resolve(config(path, zero), 4, 1000)
    for word in (str(path), *words):
        assert word in str(caught.value)


def test_a_missing_file():
    with pytest.raises(ConfigurationError, match=r"parallel\.deepspeed: file nowhere\.json does not exist"):
        deepspeed_json.zero_stage(config("nowhere.json"))


def test_the_file_is_not_changed(write):
    path = write({"zero_optimization": {"stage": 1, "reduce_bucket_size": "auto"}})
    before = path.read_bytes()
    deepspeed_json.resolve(config(path), 4, 1000)
    assert path.read_bytes() == before
