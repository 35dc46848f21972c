"""Model FLOPs and their share of the hardware's peak, under the two conventions that published figures use.

Training one token costs, forward and backward,

    F = 6 * N_mm + c * length * hidden * layers

with N_mm the weights that are multiplied with activations: all matrices and the output head (once, if tied), not the
input embedding, which is a lookup. The attention scores and values cost c = 12 per pair if every pair counts
("full", as torchtitan does), c = 6 if only pairs that a causal mask leaves count ("causal", as Megatron-core does).
MDLM sees all pairs, so both agree for it. BD3-LM runs 2 * length positions through the layers and length through the
head; each of its layers has length + block visible pairs per clean token (4 * length in the full square). The clean
half of its last layer is needed for keys and values only: the rest of it does not count, nor its queries' pairs.
Recomputed activations do not count either: they are not progress. Grouped keys and values change N_mm only, since every
head still attends.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

from card_scale.config import Config, ModelConfig

_ATTENTION_FACTORS = {"causal": 6, "full": 12}

# Dense bfloat16 peak in FLOP/s by device, from the vendors' data sheets (half of the figures with 2:4 sparsity).
# Matched in this order as whole words of the device's name, so the variants stand before the plain names.
_PEAKS = (
    (r"H100 PCIe", 756e12),
    (r"H100 NVL", 835e12),
    (r"H200 NVL", 835e12),
    (r"(H100|H200|H800|GH200)", 989.4e12),
    (r"GB200", 2500e12),
    (r"B200", 2250e12),
    (r"(A100|A800)", 312e12),
    (r"H20", 148e12),
    (r"L40S", 362e12),
    (r"L4", 121e12),
    (r"A40", 149.7e12),
    (r"A30", 165e12),
)


@dataclass(frozen=True)
class ParameterCounts:
    """Weights of a model by what they are for."""

    embedding: int
    """Input embedding."""
    layers: int
    """Matrices of all layers."""
    norms: int
    """Norm gains, the final one included."""
    head: int
    """Output head; 0 if it is the embedding."""
    multiplied: int
    """N_mm: weights that are multiplied with activations, a tied head included."""

    @property
    def total(self) -> int:
        """All weights, a tied one once."""
        return self.embedding + self.layers + self.norms + self.head


def parameter_counts(*, layers: int, hidden: int, ffn: int, vocabulary: int, tied: bool) -> ParameterCounts:
    """Weights of a decoder with full multi-head attention, a gated feed-forward network, RMSNorm and no biases.

    Per layer 4 * hidden**2 for attention, 3 * hidden * ffn for the feed-forward network and two norms; ``vocabulary``
    counts the rows that are really held, padding included.
    """
    table = vocabulary * hidden
    matrices = layers * (4 * hidden**2 + 3 * hidden * ffn)
    return ParameterCounts(
        embedding=table,
        layers=matrices,
        norms=(2 * layers + 1) * hidden,
        head=0 if tied else table,
        multiplied=matrices + table,
    )


class ModelFlops(NamedTuple):
    """Floating-point operations that one clean token needs, forward and backward, under both conventions."""

    causal: float
    full: float


def flops_per_token(*, multiplied: int, layers: int, hidden: int, length: int) -> ModelFlops:
    """F of the module's formula; ``multiplied`` is N_mm, ``length`` the number of input tokens."""
    pairs = length * hidden * layers
    return ModelFlops(**{name: 6.0 * multiplied + factor * pairs for name, factor in _ATTENTION_FACTORS.items()})


def counts_of(model: ModelConfig, vocabulary_rows: int) -> ParameterCounts:
    """Weights of a configured model; ``vocabulary_rows`` are the rows held, padding included."""
    return parameter_counts(
        layers=model.layers,
        hidden=model.hidden,
        ffn=model.ffn,
        vocabulary=vocabulary_rows,
        tied=model.tie_embeddings,
    )


def block_diffusion_flops_per_token(
    *, layers: int, hidden: int, ffn: int, vocabulary: int, length: int, block: int
) -> ModelFlops:
    """F of BD3-LM per clean token; ``length`` is the number of clean tokens."""
    per_layer = 4 * hidden**2 + 3 * hidden * ffn
    unneeded = per_layer - 2 * hidden**2
    dense = 6.0 * (2 * layers * per_layer - unneeded + vocabulary * hidden)
    # The last layer answers half of the queries.
    attention = 12.0 * hidden * (layers - 0.5)
    return ModelFlops(causal=dense + attention * (length + block), full=dense + attention * 4 * length)


def flops_of(config: Config, vocabulary_rows: int) -> ModelFlops:
    """Floating-point operations per clean token of a configured model and objective."""
    model = config.model
    if config.objective.name == "bd3lm":
        return block_diffusion_flops_per_token(
            layers=model.layers,
            hidden=model.hidden,
            ffn=model.ffn,
            vocabulary=vocabulary_rows,
            length=model.length,
            block=config.objective.block,
        )
    flops = flops_per_token(
        multiplied=counts_of(model, vocabulary_rows).multiplied,
        layers=model.layers,
        hidden=model.hidden,
        length=model.length,
    )
    return ModelFlops(flops.full, flops.full) if config.objective.name == "mdlm" else flops


def peak_flops(device_name: str) -> float | None:
    """Dense bfloat16 peak in FLOP/s of a device, by the name that torch.cuda.get_device_name returns.

    None for a device that is not in the table, for a CPU, and for a MIG slice, whose share of the peak is not known.
    """
    if re.search(r"\bMIG\b", device_name):
        return None
    return next((peak for pattern, peak in _PEAKS if re.search(rf"\b{pattern}\b", device_name)), None)


def throughput_fields(
    flops: ModelFlops, *, tokens_per_second: float, devices: int, peak: float | None
) -> dict[str, float]:
    """Fields of a training record: model TFLOP/s per device, and its share of ``peak`` where one is known.

    ``tokens_per_second`` is global. Returns ``tflops_per_device`` (causal convention), and with a peak ``mfu_causal``
    and ``mfu_full`` as fractions of 1.
    """
    tokens = tokens_per_second / devices
    fields = {"tflops_per_device": flops.causal * tokens / 1e12}
    if peak is not None:
        fields["mfu_causal"] = flops.causal * tokens / peak
        fields["mfu_full"] = flops.full * tokens / peak
    return fields
