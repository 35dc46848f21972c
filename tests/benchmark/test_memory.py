"""Memory: refused before anything is allocated, with what would fit; measured without being changed."""

import re

import pytest
import torch

from card_scale.benchmark import latency
from card_scale.benchmark.arms import Arm, config_of, with_sizes
from card_scale.benchmark.memory_check import check_fits
from card_scale.benchmark.micro_batch import LARGEST, largest_fitting
from card_scale.benchmark.peak_memory import PeakMemory
from card_scale.cost.memory import step_memory
from card_scale.distributed import device, parallel_dims
from card_scale.errors import ConfigurationError
from card_scale.training.memory_fit import Memory
from tests.layouts.trajectory import small_config

ROWS = 256
CPU = torch.device("cpu")


def step_bytes(config, layout) -> float:
    return step_memory(config, layout, 0, ROWS).total


def in_host(available: float) -> Memory:
    return Memory(available, "free", is_host=True)


def refusal(arm: Arm, config, available: float) -> str:
    with pytest.raises(ConfigurationError) as raised:
        check_fits(arm, config, parallel_dims.plan(config, 1), ROWS, in_host(available))
    return str(raised.value)


@pytest.mark.parametrize("arm", [Arm("card"), Arm("bd3lm", "split", 4), Arm("bd3lm", "dense", 4)], ids=lambda a: a.name)
def test_a_refusal_names_what_would_fit_and_it_does(arm):
    config = with_sizes(small_config(parallel=dict(zero=0)), length=64, micro_batch=8, global_batch=8)
    layout = parallel_dims.plan(config, 1)
    needed = step_bytes(config_of(arm, config), layout)
    check_fits(arm, config, layout, ROWS, in_host(needed))
    states = step_bytes(config_of(arm, with_sizes(config, length=4, micro_batch=1, global_batch=1)), layout)
    for available in (0.9 * needed, 0.5 * needed, states * 1.3):
        message = refusal(arm, config, available)
        assert f"arm {arm.name} at model.length 64 and train.micro_batch 8 needs about" in message
        length, micro_batch = map(
            int, re.search(r"model.length (\d+) with train.micro_batch (\d+) would", message).groups()
        )
        sizes = with_sizes(config, length=length, micro_batch=micro_batch, global_batch=micro_batch)
        check_fits(arm, sizes, layout, ROWS, in_host(available))


def test_where_nothing_fits_it_says_so():
    assert "smaller model" in refusal(Arm("bd3lm", "split", 16), small_config(parallel=dict(zero=0)), 1000)


def test_block_diffusion_needs_twice_the_activations_and_dense_the_mask():
    config = with_sizes(small_config(parallel=dict(zero=0)), length=64, micro_batch=8, global_batch=8)
    layout = parallel_dims.plan(config, 1)
    sizes = {arm: step_bytes(config_of(arm, config), layout) for arm in (Arm("card"), Arm("bd3lm", "split", 4))}
    model = config.model
    activations = 8 * 64 * model.layers * (10 * model.hidden + 4 * model.ffn) * 4
    assert sizes[Arm("bd3lm", "split", 4)] - sizes[Arm("card")] == activations
    dense = step_bytes(config_of(Arm("bd3lm", "dense", 4), config), layout)
    assert dense - sizes[Arm("bd3lm", "split", 4)] == 5 * 128**2


def settings(**changes) -> latency.Settings:
    chosen = dict(arms=[Arm("card"), Arm("bd3lm", "dense", 4)], vocabulary=250, steps=1, warm_up=2)
    return latency.Settings(**{**chosen, **changes}, memory_cap=None, profile=False)


def test_a_sweep_is_refused_before_any_engine_is_built(monkeypatch):
    monkeypatch.setattr(latency, "free_memory", lambda: in_host(2**27))
    monkeypatch.setattr(latency, "build_engine", lambda *_: pytest.fail("an engine was built"))
    models = [("small", small_config(parallel=dict(zero=0)))]
    assert latency.check(latency.cases(models, [16], None, 1), settings(), 1).world_size == 1
    with pytest.raises(ConfigurationError, match=r"arm bd3lm-dense-b4 at model.length 4096.*would fit"):
        latency.check(latency.cases(models, [16, 4096], 4096, 1), settings(), 1)


def test_a_backend_that_the_device_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(device, "current_device", lambda: CPU)
    cases = latency.cases([("small", small_config())], [16], None, 1)
    for arm in (Arm("bd3lm", "flex", 4), Arm("bd3lm", "sdpa", 4), Arm("card", "split")):
        with pytest.raises(ConfigurationError, match=rf"attention_backend is {arm.backend}.*cpu"):
            latency.check(cases, settings(arms=[arm]), 1)


def test_cases_that_cannot_be_are_refused():
    models = [("small", small_config())]
    with pytest.raises(ConfigurationError, match="--tokens 100 is not a multiple of length 16"):
        latency.cases(models, [16], 100, 1)
    with pytest.raises(ConfigurationError, match="two are alike"):
        latency.cases(models * 2, [16], None, 1)
    mixed = [*models, ("tensor", small_config(parallel=dict(tensor=2)))]
    with pytest.raises(ConfigurationError, match=r"several \(.*tensor 1.*; .*tensor 2"):
        latency.check(latency.cases(mixed, [], None, 2), settings(), 2)


def test_tokens_fill_a_micro_batch_at_every_length():
    cases = latency.cases([("small", small_config())], [16, 64], 256, 2)
    assert [(case.config.train.micro_batch, case.config.train.global_batch) for case in cases] == [(16, 32), (4, 8)]


def test_the_largest_micro_batch_is_a_power_of_two_under_the_cap():
    assert largest_fitting(110.0, 120.0, 500.0) == 32  # 100 + 10 * 32 = 420
    assert largest_fitting(110.0, 120.0, 420.0) == 32
    assert largest_fitting(110.0, 120.0, 419.0) == 16
    assert largest_fitting(110.0, 120.0, 100.0) == 0
    assert largest_fitting(110.0, 110.0, 10_000.0) == LARGEST


def test_kept_tensors_are_counted_once_each_until_their_backward_pass():
    layer = torch.nn.Linear(8, 8, bias=False)
    with PeakMemory(CPU, [layer]) as peak:
        for _ in range(3):
            x = torch.randn(4, 8)
            y = layer(x)  # keeps x (128 bytes); the weight is a state
            z = y.sigmoid()  # keeps its output (128 bytes)
            (z * z).sum().backward()  # keeps z again, twice
    assert peak.bytes == 2 * 4 * 8 * 4
