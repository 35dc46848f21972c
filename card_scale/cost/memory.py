"""Memory of a training step by what it is for, and of a checkpoint, estimated before anything is allocated."""

from types import MappingProxyType
from typing import NamedTuple

from card_scale.config import Config
from card_scale.cost.parameters import parameter_counts
from card_scale.distributed.parallel_dims import ParallelDims
from card_scale.model.cross_entropy.parts import PART_ELEMENTS, most_at_once

_MASTER_AND_MOMENTS = 12
"""Bytes of a float32 weight and both Adam moments."""

_AVERAGE = 4
"""Bytes of a weight's moving average."""

_KEPT = MappingProxyType({"none": (10, 4), "selective": (6, 2), "full": (1, 0)})
"""By ``parallel.recompute``: hidden-sized and ffn-sized tensors that a layer keeps. With ``selective`` its input, the
queries, keys and values, the attention's output and projection, and the feed-forward network's two first products."""


class MemoryByCause(NamedTuple):
    """Bytes on a rank that holds an even share of the parameters, at the peak of a step."""

    weights: float
    """In the compute precision."""
    gradients: float
    optimizer: float
    """Float32 master weights, both moments, the moving average."""
    activations: float
    """Kept by the layers for the backward pass."""
    logits: float
    """Of a micro-batch, and their gradient where it does not take their place."""
    attention_mask: float

    @property
    def states(self) -> float:
        """What stays between steps."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> float:
        """All causes together."""
        return sum(self)


def step_memory(
    config: Config, dims: ParallelDims, zero_stage: int, vocabulary_rows: int, *, device_bytes: float | None = None
) -> MemoryByCause:
    """Estimate the memory of a training step.

    Model states: per parameter (ZeRO paper, table 1) the compute weight (fp32: the master itself), a float32 gradient,
    and float32 master and moments; each divided by the data-parallel size once ``zero_stage`` shards it. The largest
    layer, gathered for use under full sharding, is left out, as are the libraries and the CUDA context.

    Activations: per position and layer what :data:`_KEPT` says (flash attention, no dropout); as many micro-batches as
    there are stages are in flight under 1F1B.

    The dense attention backend holds its mask [positions, positions], boolean and in the compute type, which is what
    torch makes of it in front of its fused kernels (none of them keeps the scores).

    ``device_bytes``: of the GPU that it runs on, for what is chosen by the device; None: it runs on a CPU.
    """
    model, train = config.model, config.train
    item = 2 if train.precision == "bf16" else 4
    share = parameter_counts(model, vocabulary_rows).total / (dims.tensor * dims.pipeline)
    compute_weight = 2 if train.precision == "bf16" else 4 if zero_stage in (1, 2, 3) else 0
    optimizer = _MASTER_AND_MOMENTS + (_AVERAGE if config.optimizer.ema else 0)
    kind = config.objective.attention
    wide, positions = kind.wide_layers(model.layers), kind.inputs_per_token * model.length
    # Narrow layers keep the positions that predict alone.
    positions_of_layers = wide * positions + (model.layers - wide) * model.length
    of_hidden, of_ffn = _KEPT[config.parallel.recompute]
    per_layer = of_hidden * model.hidden + of_ffn * model.ffn
    in_flight = min(dims.pipeline, train.global_batch // (train.micro_batch * dims.data))
    kept = train.micro_batch * positions_of_layers * in_flight * per_layer / dims.pipeline
    micro_batch_logits = train.micro_batch * model.length * vocabulary_rows / dims.tensor
    return MemoryByCause(
        weights=share * compute_weight / (dims.data if zero_stage == 3 else 1),
        gradients=share * 4 / (dims.data if zero_stage >= 2 else 1),
        optimizer=share * optimizer / (dims.data if zero_stage >= 1 else 1),
        activations=kept * item / (dims.tensor if dims.sequence else 1),
        logits=item * _logits_held(config, micro_batch_logits, item, device_bytes),
        attention_mask=(1 + item) * positions**2 if model.attention_backend == "dense" else 0.0,
    )


def _logits_held(config: Config, elements: float, item_bytes: int, device_bytes: float | None) -> float:
    """Return how many numbers the head holds for so many logits: themselves and their gradient, which the fused kernel
    writes over them; of a part of the positions alone where the loss is computed in parts."""
    backend = config.model.loss_backend
    if backend == "chunked" or (
        backend == "auto" and device_bytes and elements > most_at_once(device_bytes, item_bytes)
    ):
        elements = min(elements, PART_ELEMENTS)
    is_fused = backend == "fused" or (device_bytes is not None and backend != "torch")
    return elements if is_fused else 2 * elements


def checkpoint_bytes(config: Config, vocabulary_rows: int) -> int:
    """Return the bytes of a checkpoint: float32 weights, moments and moving average."""
    per_parameter = _MASTER_AND_MOMENTS + (_AVERAGE if config.optimizer.ema else 0)
    return parameter_counts(config.model, vocabulary_rows).total * per_parameter
