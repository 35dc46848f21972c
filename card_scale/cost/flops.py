"""Model FLOPs of training and evaluation, under the two conventions that published figures use.

Training one clean token costs, forward and backward,

    F = 6 * N_mm * positions + 12 * hidden * pairs

with N_mm the weights that are multiplied with activations: all matrices and the output head (once, if tied), not the
input embedding, which is a lookup. Attention costs 12 * hidden for each pair of query and key, for scores and values
together. "Causal" counts the pairs that the objective's attention kind leaves visible (as Megatron-core does for a
causal mask, L / 2 a token), "full" all of the square (as torchtitan does).

How many positions and pairs a token stands for is the attention kind's to say. A kind with several positions a token,
of which one predicts, needs the rest of its last wide layer for keys and values only: that layer's queries, output
projection and feed-forward network count for the predicting positions alone, and so do its pairs; layers behind it have
no other positions. A query stream, which nobody sees in the wide layers, needs no keys and values there. Recomputed
activations do not count: they are not progress. Grouped keys and values change N_mm only, since every head still
attends.
"""

from typing import NamedTuple

from card_scale.config import ModelConfig
from card_scale.cost.parameters import layer_matrices
from card_scale.objectives.attention import AttentionKind

FORMULA = (
    "per clean token, forward and backward, hidden d: layers 6 x matrices per layer and position (of inputs that do "
    "not predict, in the last layer, keys and values only); attention 12 d per visible pair and layer (causal L/2, "
    "bidirectional L, block diffusion L + block, half of them in its last layer; two streams L in the first half of "
    "the layers, without keys and values of the queries, L/2 in the second); head 6 d vocabulary"
)
"""What :func:`training_work` counts, for reports."""

FORWARD_SHARE = 1 / 3
"""Of a training step's FLOPs: the backward pass costs two forward passes."""


class Work(NamedTuple):
    """Floating-point operations by part. The rest (corruption, embedding, optimizer) multiplies no matrices."""

    layers: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        """All parts together."""
        return self.layers + self.attention + self.head


class ModelFlops(NamedTuple):
    """Floating-point operations that one clean token needs, forward and backward, under both conventions."""

    causal: float
    full: float


def training_work(model: ModelConfig, kind: AttentionKind, vocabulary_rows: int, *, full: bool = False) -> Work:
    """Return what training on one clean token needs, by part.

    Args:
        model: sizes; ``model.length`` is the number of clean tokens of a sample.
        kind: of attention.
        vocabulary_rows: rows of the output head, padding included.
        full: count every pair of the square instead of the visible ones.
    """
    inputs, wide = kind.inputs_per_token, kind.wide_layers(model.layers)
    narrow = model.layers - wide
    matrices = layer_matrices(model)
    key_value_matrices = 2 * model.hidden * model.key_value_heads * model.head_size
    unneeded = (inputs - 1) * (matrices - key_value_matrices)
    if kind.has_query_stream:
        unneeded += wide * key_value_matrices
    pairs = inputs**2 * model.length if full else kind.pairs_per_token(model.length)
    # The last wide layer answers one query a token.
    layers_of_pairs = (wide - 1 + 1 / inputs) * pairs
    if narrow:
        layers_of_pairs += narrow * (model.length if full else kind.behind_wide_layers.pairs_per_token(model.length))
    return Work(
        layers=6.0 * ((inputs * wide + narrow) * matrices - unneeded),
        attention=12.0 * model.hidden * layers_of_pairs,
        head=6.0 * vocabulary_rows * model.hidden,
    )


def flops_per_token(model: ModelConfig, kind: AttentionKind, vocabulary_rows: int) -> ModelFlops:
    """Return F of the module's formula; arguments as of :func:`training_work`."""
    return ModelFlops(
        causal=training_work(model, kind, vocabulary_rows).total,
        full=training_work(model, kind, vocabulary_rows, full=True).total,
    )
