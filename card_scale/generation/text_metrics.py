"""What generated tokens look like, without a model: variety and repetition."""

import math
from collections.abc import Sequence

import numpy as np

from card_scale.corpus.entropy import unigram_entropy

REPEATED = 4
"""Length of the n-grams whose repetition is counted."""


def ngrams(tokens: Sequence[int], length: int) -> list[tuple[int, ...]]:
    """All runs of ``length`` tokens, in order."""
    return [tuple(tokens[begin : begin + length]) for begin in range(len(tokens) - length + 1)]


def distinct(texts: Sequence[Sequence[int]], length: int) -> float:
    """Share of different n-grams among those of all texts (distinct-n, arXiv 1510.03055); NaN without any."""
    found = [ngram for text in texts for ngram in ngrams(text, length)]
    return len(set(found)) / len(found) if found else math.nan


def repetition_rate(texts: Sequence[Sequence[int]], length: int = REPEATED) -> float:
    """Share of n-grams that their own text has had before; NaN without any."""
    repeated = total = 0
    for text in texts:
        found = ngrams(text, length)
        total += len(found)
        repeated += len(found) - len(set(found))
    return repeated / total if total else math.nan


def entropy(texts: Sequence[Sequence[int]]) -> float:
    """Entropy of the tokens of a text in nats, the mean over texts; NaN without any."""
    found = [unigram_entropy(np.array(text)) for text in texts]
    return sum(found) / len(found) if found else math.nan


def agreement(texts: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]) -> float:
    """Share of the expected tokens that come before a text's first difference."""
    same = total = 0
    for text, other in zip(texts, expected, strict=True):
        pairs = [one == another for one, another in zip(text, other, strict=False)]
        same += pairs.index(False) if False in pairs else len(pairs)
        total += len(other)
    return same / total if total else math.nan
