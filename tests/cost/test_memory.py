"""The head's share of a step's memory, by how its loss is computed."""

import dataclasses

import pytest

from card_scale.config import Config, ModelConfig, TrainConfig
from card_scale.cost.memory import step_memory
from card_scale.distributed.parallel_dims import ParallelDims

ROWS = 131_072
CONFIG = Config(
    model=ModelConfig(length=1024), train=TrainConfig(steps=1, global_batch=16, micro_batch=16, precision="bf16")
)
ALL = 16 * 1024 * ROWS * 2


@pytest.mark.parametrize(
    "backend, on_gpu, expected",
    [
        ("torch", True, 2 * ALL),
        ("auto", False, 2 * ALL),
        ("auto", True, ALL),
        ("auto but large", True, 2**28 * 2),
        ("fused", True, ALL),
        ("chunked", True, 2**28 * 2),
        ("chunked", False, 2 * 2**28 * 2),
    ],
)
def test_logits_and_their_gradient(backend, on_gpu, expected):
    backend, _, large = backend.partition(" but ")
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, loss_backend=backend))
    # Large: more than a sixteenth of the device's memory.
    device_bytes = (15.9 if large else 16.1) * ALL if on_gpu else None
    assert step_memory(config, ParallelDims(1, 1, 1), 1, ROWS, device_bytes=device_bytes).logits == expected
    halved = step_memory(config, ParallelDims(2, 1, 1), 1, ROWS, device_bytes=device_bytes).logits
    assert halved == (expected if backend == "chunked" else ALL / 2 if large else expected / 2)
