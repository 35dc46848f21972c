"""The entropy of token frequencies, against counting by hand and against scipy."""

import math
from collections import Counter

import numpy as np
import pytest
from scipy.stats import entropy

from card_scale.corpus.entropy import unigram_entropy


def test_by_hand():
    assert unigram_entropy(np.array([[7, 7], [7, 7]])) == 0.0
    assert unigram_entropy(np.array([1, 2, 3, 4])) == pytest.approx(math.log(4))
    # Half, a quarter and a quarter: one and a half bits.
    assert unigram_entropy(np.array([5, 5, 6, 9])) == pytest.approx(1.5 * math.log(2))


def test_any_shape_against_scipy():
    tokens = np.random.default_rng(0).integers(0, 50, (6, 17)).astype(np.uint16)
    assert unigram_entropy(tokens) == pytest.approx(entropy(list(Counter(tokens.ravel().tolist()).values())), rel=1e-12)
