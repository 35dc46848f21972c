"""The likelihood of a prepared dataset under a checkpoint."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from card_scale.data import order
from card_scale.data.stream import PackedStream
from card_scale.generation.load import TrainedModel
from card_scale.generation.scoring import Scored, is_exact, score

ROWS = 64
"""Samples between two reports of progress."""


class Perplexity(NamedTuple):
    """Of a dataset's split, sample by sample of the model's length."""

    samples: int
    tokens: int
    """That were scored."""
    nats_per_token: float
    bits_per_byte: float
    """Of UTF-8 text as the tokenizer gives it back: comparable between tokenizers that rewrite nothing."""
    is_bound: bool
    """Whether the true likelihood may be better."""
    standard_error: float
    """Of a bound's nats per token, over other draws; 0 where they are exact."""

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats_per_token)


def open_stream(model: TrainedModel, dataset: Path, split: str) -> PackedStream:
    """Samples of the model's length. Raises DataError for a dataset of another tokenizer."""
    stream = PackedStream(dataset, split, 0, model.shape.length)
    model.check_tokenizer(stream.manifest.tokenizer.sha256, dataset)
    return stream


def dataset_perplexity(
    model: TrainedModel, dataset: Path, split: str, *, samples: int | None, batch: int, draws: int
) -> Iterator[Perplexity]:
    """Yield the likelihood of more and more samples, that of all of them last.

    Each sample's first token is its context, and ``samples`` are chosen as in training, so this is ``validation_nll``
    of training with as many of them where the model is exact.

    Raises DataError for a dataset of another tokenizer.
    """
    stream = open_stream(model, dataset, split)
    sample_ids = order.evaluated_samples(split, samples, stream.sample_count)
    lengths = [len(model.tokenizer.piece_bytes(token)) for token in range(model.shape.vocabulary)]
    nats = tokens = text_bytes = variance = 0.0
    for begin in range(0, len(sample_ids), ROWS):
        rows = stream.samples(sample_ids[begin : begin + ROWS]).tolist()
        # A model that predicts in place reads its length and no token more.
        rows = [row[:-1] for row in rows] if model.shape.in_place else rows
        scores = score(model, [Scored(row[:1], row[1:]) for row in rows], batch=batch, draws=draws)
        nats -= sum(one.log_likelihood for one in scores)
        variance += sum(one.variance for one in scores)
        tokens += sum(len(row) - 1 for row in rows)
        text_bytes += sum(lengths[token] for row in rows for token in row[1:])
        per_byte = nats / math.log(2) / max(text_bytes, 1)
        yield Perplexity(
            samples=min(begin + ROWS, len(sample_ids)),
            tokens=int(tokens),
            nats_per_token=nats / tokens,
            bits_per_byte=per_byte,
            is_bound=not is_exact(model),
            standard_error=math.sqrt(variance) / tokens,
        )
