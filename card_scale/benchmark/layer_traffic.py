"""What a compiled decoder layer reads and writes in a training step, as torch's compiler counts it, without timing.

A layer's products are bound by arithmetic, its other kernels by memory: how many bytes these move says what they cost
on any device, up to its bandwidth. Each buffer counts once for each kernel that reads or writes it.
"""

import dataclasses
import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch._inductor import config as inductor_config
from torch._inductor import metrics
from torch._inductor.compile_fx import inductor_metrics_log

from card_scale.config import Config
from card_scale.distributed.device import current_device
from card_scale.distributed.parallel_dims import ParallelDims
from card_scale.engine.build import compute_dtype
from card_scale.errors import ConfigurationError
from card_scale.model.gpt import GPT
from card_scale.model.rotary import rotation
from card_scale.model.vocabulary import Vocabulary

UNIT = "hidden states of one layer, read or written once"
"""Unit of what is counted."""


class Traffic(NamedTuple):
    """Of a layer's step, forward and backward, in units of :data:`UNIT`."""

    element_wise: float
    """Of the kernels that the compiler made."""
    kernels: int
    """How many of them there are."""
    others: float
    """Of matrix products and attention."""


def layer_traffic(config: Config, dims: ParallelDims, rows: int, layers: int = 1) -> Traffic:
    """Return what a layer moves, the mean over ``layers``; those of ``config`` with its sizes and recomputation.

    The process groups must have formed. More than one layer are compiled as one graph: what is saved so over as many
    graphs is what compiling a whole chunk would save.

    Raises ConfigurationError for what would not be counted as it is trained: layers that differ from each other, a
    graph of several that recompute, tensor parallelism.
    """
    if config.objective.attention.inputs_per_token > 1:
        raise ConfigurationError(
            f"objective.name is {config.objective.name}, whose layers are not all alike; valid are objectives with one "
            "input a token"
        )
    if layers > 1 and config.parallel.recompute != "none":
        raise ConfigurationError(
            f"parallel.recompute is {config.parallel.recompute}, which is of each layer; several as one graph are "
            "counted with none"
        )
    if config.parallel.tensor > 1:
        raise ConfigurationError(f"parallel.tensor is {config.parallel.tensor}; one rank is counted, with 1")
    sizes = dataclasses.replace(config.model, layers=layers)
    kind, device = config.objective.attention, current_device()
    recompute, dtype = config.parallel.recompute, compute_dtype(config)
    vocabulary = Vocabulary(size=sizes.hidden, mask_id=0)
    model = GPT(sizes, vocabulary, kind, dims, compute_dtype=dtype, recompute=recompute, compile_layers=layers == 1)
    model = model.to(device, dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    positions = torch.arange(sizes.length, device=device).expand(rows, -1)
    attention = model.attention.of_kind(None)
    attention.prepare(sizes.length, device)
    turn = rotation(model._rotary_angles(positions), dtype)

    def forward(hidden_states: Tensor) -> Tensor:
        for layer in model.layers.values():
            hidden_states = layer(hidden_states, turn, attention.of(layer.index), None)
        return hidden_states

    run = forward if layers == 1 else torch.compile(forward, fullgraph=True, dynamic=False)
    states = torch.zeros(sizes.length, rows, sizes.hidden, dtype=dtype, device=device, requires_grad=True)
    counted = _counted(lambda: run(states).sum().backward())
    unit = layers * states.numel() * states.element_size()
    return Traffic(counted.element_wise / unit, counted.kernels // layers, counted.others / unit)


def _counted(step: Callable[[], None]) -> Traffic:
    """Return what the graphs that ``step`` compiles move, in bytes."""
    torch.compiler.reset()
    metrics.reset()
    # The compiler counts where this log is wanted, and a graph from the cache is not counted (torch 2.13).
    level = inductor_metrics_log.level
    inductor_metrics_log.setLevel(logging.INFO)
    inductor_metrics_log.addFilter(_nothing)
    try:
        with inductor_config.patch(force_disable_caches=True):
            step()
    finally:
        inductor_metrics_log.removeFilter(_nothing)
        inductor_metrics_log.setLevel(level)
    # In numbers of four bytes, whatever their type.
    sizes = [(node.is_extern() or node.is_template(), 4 * numbers) for node, numbers in metrics.nodes_num_elem]
    element_wise, others = (sum(size for extern, size in sizes if extern is which) for which in (False, True))
    return Traffic(element_wise, metrics.generated_kernel_count, others)


def _nothing(_record: logging.LogRecord) -> bool:
    return False
