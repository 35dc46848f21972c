"""What layers keep for the backward pass, and that products and attention are computed once where they are kept."""

import functools

import pytest
import torch
from torch.profiler import profile

from card_scale.benchmark.peak_memory import PeakMemory
from card_scale.model.rotary import rotation

HIDDEN, FFN, LAYERS, LENGTH, ROWS = 32, 48, 4, 64, 2
HEADS = 2
LOG_SUMS = HEADS / HIDDEN
"""That attention keeps of its scores, in hidden-sized tensors, as all here."""
ROTARY = 1.5 / HEADS / ROWS / LAYERS
"""Cosines and sines, which the layers share."""
SITE = 8 / (LENGTH * ROWS * HIDDEN * 4)
"""The number of a layer's dropout."""


def kept_and_computed(model):
    """Return (hidden-sized tensors that a layer keeps, (matrix products, calls of attention) of a step's layers)."""
    attention = model.attention.of_kind(None)
    positions = torch.arange(LENGTH).expand(ROWS, -1)
    attention.prepare(LENGTH, torch.device("cpu"))
    turn = rotation(model._rotary_angles(positions), torch.float32)
    states = torch.randn(LENGTH, ROWS, HIDDEN, requires_grad=True)
    memory = PeakMemory(torch.device("cpu"), [model])

    def step():
        hidden_states = states
        for layer in model.layers.values():
            hidden_states = layer(hidden_states, turn, attention.of(layer.index), None)
        hidden_states.backward(torch.ones_like(hidden_states))

    step()  # compiles
    with profile() as profiled, memory:
        step()
    calls = {event.key: event.count for event in profiled.key_averages()}
    products = calls["aten::mm"], calls["aten::_scaled_dot_product_flash_attention_for_cpu"]
    return memory.bytes / states.untyped_storage().nbytes() / LAYERS, products


@pytest.fixture
def compiled(monkeypatch, build):
    """Function that builds a model of compiled layers, as graphs whose operations can be counted."""
    backend = functools.partial(torch.compile, backend="aot_eager_decomp_partition")
    monkeypatch.setattr(torch, "compile", backend)
    torch.compiler.reset()
    return functools.partial(
        build, compile_layers=True, hidden=HIDDEN, heads=HEADS, ffn=FFN, layers=LAYERS, length=LENGTH
    )


@pytest.mark.parametrize(
    "recompute, least, most, products, attention",
    [
        ("none", 10 + 2 * FFN / HIDDEN, 10 + 4 * FFN / HIDDEN, 12, 1),
        ("selective", *2 * [6 + 2 * FFN / HIDDEN + LOG_SUMS + ROTARY], 12, 1),
        # What turns heads is kept too, once for all layers, where it is not counted: by the function that runs again.
        ("full", *2 * [1 + SITE], 16, 2),
    ],
)
def test_what_is_kept_and_what_is_computed_again(compiled, recompute, least, most, products, attention):
    kept, computed = kept_and_computed(compiled(recompute=recompute))
    assert least <= kept <= most
    assert computed == (LAYERS * products, LAYERS * attention)
