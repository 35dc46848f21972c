"""Whether a step fits: the changes that are named are possible, take what they say, and are the best three."""

import dataclasses

import pytest
import torch

from card_scale.config import Config, DataConfig, ModelConfig, ParallelConfig, TrainConfig
from card_scale.errors import ExitCode, OutOfMemory
from card_scale.training import memory_fit
from card_scale.training.memory_fit import Memory, needed_bytes, smaller, verdict

ROWS = 50_432
CONFIG = Config(
    model=ModelConfig(layers=24, hidden=2048, heads=16, ffn=5504, length=2048),
    data=DataConfig(path="nowhere"),
    parallel=ParallelConfig(zero=1),
    train=TrainConfig(steps=10, global_batch=64, micro_batch=4, precision="bf16"),
)
DEVICE = Memory(80 * 2**30, "stated", is_host=False)


def changed(config: Config, setting: str) -> Config:
    key, _, value = setting.partition("=")
    group, _, name = key.partition(".")
    kind = type(getattr(getattr(config, group), name) or 0)
    return dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **{name: kind(value)})})


def test_every_change_takes_what_it_says():
    changes = list(smaller(CONFIG, 2, ROWS, DEVICE))
    now = needed_bytes(CONFIG, 2, ROWS, DEVICE)
    named = {change.setting for change in changes}
    assert {"train.micro_batch=2", "parallel.recompute=full", "parallel.zero=3", "parallel.tensor=2"} <= named
    assert "parallel.recompute=selective" in named
    for change in changes:
        assert change.bytes < now
        if "=" in change.setting:
            assert needed_bytes(changed(CONFIG, change.setting), 2, ROWS, DEVICE) == change.bytes


def test_what_is_impossible_is_not_named():
    # One rank holds no two stages, and a batch of one no two ranks; all else is there already.
    config = dataclasses.replace(
        CONFIG,
        parallel=ParallelConfig(zero=3, recompute="full"),
        train=dataclasses.replace(CONFIG.train, micro_batch=1, global_batch=1),
    )
    assert not list(smaller(config, 1, ROWS, DEVICE))


@pytest.mark.parametrize("share, begin, lines", [(2.0, "fits", 1), (1.05, "hardly fits", 4), (0.9, "does not fit", 4)])
def test_the_verdict_and_the_three_best(share, begin, lines):
    needs = needed_bytes(CONFIG, 2, ROWS, DEVICE)
    memory = DEVICE._replace(bytes=needs * share)
    said = verdict(CONFIG, 2, ROWS, memory)
    assert said[0].startswith(f"{begin}: a rank needs about {needs / 2**30:.3g} GiB")
    assert len(said) == lines
    best = sorted(change.bytes for change in smaller(CONFIG, 2, ROWS, memory))[: lines - 1]
    assert [float(line.split()[1]) for line in said[1:]] == pytest.approx([size / 2**30 for size in best], rel=5e-3)


def test_what_is_offloaded_lies_in_the_host():
    config = dataclasses.replace(
        CONFIG,
        model=dataclasses.replace(CONFIG.model, loss_backend="torch"),  # else the device decides about the logits
        parallel=ParallelConfig(deepspeed="ds_configs/zero3_offload.json"),
    )
    on_device = needed_bytes(config, 2, ROWS, DEVICE)
    in_host = needed_bytes(config, 2, ROWS, DEVICE._replace(is_host=True))
    parameters = (in_host - on_device) * 2 / 16  # float32 master, moments and gradient, over two ranks
    assert parameters == pytest.approx(2 * ROWS * 2048 + 24 * (4 * 2048**2 + 3 * 2048 * 5504), rel=1e-3)


def test_what_runs_out_of_memory_says_where_and_what_helps(monkeypatch):
    monkeypatch.setattr(memory_fit, "memory_of_a_rank", lambda *_: DEVICE)
    with (
        pytest.raises(OutOfMemory) as caught,
        memory_fit.explained(CONFIG, 2, ROWS, lambda: ("evaluation", 7)),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
    assert caught.value.exit_code == ExitCode.CONFIGURATION
    message = str(caught.value)
    best = sorted(smaller(CONFIG, 2, ROWS, DEVICE), key=lambda change: change.bytes)[:3]
    words = ["out of memory (evaluation, step 7)", "80 GiB", "Tried to allocate 2.00 GiB.", *(c.setting for c in best)]
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_other_errors_pass_through():
    with pytest.raises(RuntimeError, match="another"), memory_fit.explained(CONFIG, 2, ROWS, lambda: ("step", 1)):
        raise RuntimeError("another")
