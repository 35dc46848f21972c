"""Weights of a model by what they are for. Imports nothing heavy."""

from dataclasses import dataclass

from card_scale.config import ModelConfig


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


def layer_matrices(model: ModelConfig) -> int:
    """Weights of a layer's matrices: query, key, value and output projection, and the gated feed-forward network."""
    key_value_width = model.key_value_heads * model.head_size
    return 2 * model.hidden**2 + 2 * model.hidden * key_value_width + 3 * model.hidden * model.ffn


def parameter_counts(model: ModelConfig, vocabulary_rows: int) -> ParameterCounts:
    """Weights of a decoder with RMSNorm and no biases; ``vocabulary_rows`` are the rows held, padding included."""
    table = vocabulary_rows * model.hidden
    matrices = model.layers * layer_matrices(model)
    return ParameterCounts(
        embedding=table,
        layers=matrices,
        norms=(2 * model.layers + 1) * model.hidden,
        head=0 if model.tie_embeddings else table,
        multiplied=matrices + table,
    )
