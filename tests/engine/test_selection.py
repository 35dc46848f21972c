"""What each engine refuses before it is imported."""

import json
import subprocess
import sys

import pytest

from card_scale.engine.selection import compiles_layers, engine_kind
from card_scale.errors import ConfigurationError
from tests.distributed.test_parallel_dims import config, plan


def check(of, world: int) -> None:
    engine_kind(of).check(of, plan(of, world))


@pytest.mark.parametrize(
    "settings, world, words",
    [
        ({"pipeline": 2, "virtual_pipeline": 2}, 2, ["parallel.virtual_pipeline 2", "ZeRO stage 3", "fsdp2"]),
        ({"pipeline": 2, "virtual_pipeline": 2, "zero": 3}, 2, ["parallel.virtual_pipeline 2", "ZeRO stage 3"]),
        ({"zero": 0, "train": {"precision": "bf16"}}, 1, ["train.precision bf16", "ZeRO stage 0", "parallel.zero 1"]),
        ({"engine": "fsdp2", "zero": 2}, 1, ["parallel.zero is 2", "fsdp2"]),
        ({"engine": "fsdp2", "deepspeed": "x.json"}, 1, ["parallel.deepspeed is 'x.json'", "fsdp2"]),
    ],
)
def test_refusals_name_the_numbers(settings, world, words):
    with pytest.raises(ConfigurationError) as caught:
        check(config(**settings), world)
    for word in words:
        assert word in str(caught.value)


def test_the_stage_of_the_json_file_counts_too(tmp_path):
    path = tmp_path / "zero0.json"
    path.write_text('{"zero_optimization": {"stage": 0}}')
    bf16 = config({"precision": "bf16"}, deepspeed=str(path))
    with pytest.raises(ConfigurationError, match="ZeRO stage 0"):
        check(bf16, 1)
    path.write_text('{"zero_optimization": {"stage": 3}}')
    interleaved = config(pipeline=2, virtual_pipeline=2, deepspeed=str(path))
    with pytest.raises(ConfigurationError, match="ZeRO stage 3"):
        check(interleaved, 2)


def test_checking_imports_no_engine():
    script = (
        "import sys, card_scale.engine.selection; "
        "print([name for name in ('torch', 'deepspeed', 'megatron') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "given, tensor, device, compiled",
    [(None, 1, "cuda", True), (None, 2, "cuda", False), (None, 1, "cpu", False), (False, 1, "cuda", False)]
    + [(True, 1, "cpu", True)],
)
def test_layers_are_compiled_by_default_where_a_gpu_can(given, tensor, device, compiled):
    settings = {} if given is None else {"compile": given}
    assert compiles_layers(config(settings, tensor=tensor), device) is compiled


def test_what_lies_in_the_hosts_memory(tmp_path):
    assert engine_kind(config()).offloaded(config()) == frozenset()
    for zero, causes in (
        ({"offload_optimizer": {"device": "cpu"}}, {"optimizer", "gradients"}),
        ({"offload_optimizer": {"device": "none"}}, set()),
        (
            {"offload_param": {"device": "nvme"}, "offload_optimizer": {"device": "cpu"}},
            {"optimizer", "gradients", "weights"},
        ),
    ):
        path = tmp_path / "offload.json"
        path.write_text(json.dumps({"zero_optimization": {"stage": 3, **zero}}))
        of = config(deepspeed=str(path))
        assert engine_kind(of).offloaded(of) == causes
