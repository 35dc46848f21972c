"""Floating-point operations of a training step, by the parts into which its time is divided."""

from typing import NamedTuple

from card_scale.config import Config
from card_scale.training.throughput import flops_of

FORMULA = (
    "per clean token, forward and backward, hidden d, length L: layers 6 (4 d^2 + 3 d ffn) per layer and position "
    "(bd3lm: 2 positions, of the last layer's clean half keys and values only); attention 12 d per visible pair and "
    "layer (causal L/2, bidirectional L, bd3lm L + block, half of them in its last layer); head 6 d vocabulary"
)
"""What :func:`step_work` counts, for reports. The totals are those of ``training/throughput.py``, causal convention."""


class Work(NamedTuple):
    """Floating-point operations by part. The rest (corruption, embedding, optimizer) multiplies no matrices."""

    layers: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        return self.layers + self.attention + self.head


def step_work(config: Config, vocabulary_rows: int) -> Work:
    """Return what one step of ``config``'s objective needs over the global batch, see :data:`FORMULA`.

    ``vocabulary_rows`` are the rows of the output head, padding included.
    """
    model = config.model
    tokens = config.train.global_batch * model.length
    head = 6.0 * tokens * model.hidden * vocabulary_rows
    attention = 12.0 * tokens * model.hidden * _pairs_per_token(config)
    return Work(tokens * flops_of(config, vocabulary_rows).causal - head - attention, attention, head)


def _pairs_per_token(config: Config) -> float:
    """Return the visible pairs of query and key per clean token, summed over the layers."""
    layers, length = config.model.layers, config.model.length
    if config.objective.name == "bd3lm":
        return (layers - 0.5) * (length + config.objective.block)
    return layers * length * (1.0 if config.objective.name == "mdlm" else 0.5)
