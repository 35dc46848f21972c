import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from card_scale.corpus import ngrams
from card_scale.data.documents import Documents

TOKENS = st.lists(st.integers(0, 3), max_size=60)


def windows(tokens, n):
    return [tuple(tokens[begin : begin + n]) for begin in range(len(tokens) - n + 1)]


def as_documents(parts):
    flat = np.array([token for part in parts for token in part], dtype="<u2")
    return Documents(np.arange(len(parts)), flat, np.cumsum([len(part) for part in parts], dtype=np.int64))


@pytest.mark.parametrize("block", [1, 7, 1 << 15])
@given(tokens=TOKENS, n=st.integers(1, 20))
def test_hashes_are_equal_where_windows_are(block, tokens, n):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngrams, "_BLOCK", block)
        hashes = ngrams.window_hashes(np.array(tokens, dtype="<u2"), n)
    expected = windows(tokens, n)
    assert hashes.dtype == np.uint64
    assert len(hashes) == len(expected)
    pairs = set(zip(expected, hashes.tolist(), strict=True))
    assert len(pairs) == len(set(expected)) == len(set(hashes.tolist()))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 13, 16, 20])
def test_a_hash_is_the_mixed_polynomial_in_the_mixed_tokens(n):
    """Summed term by term in whole numbers; no two places of a window have one weight, so their order counts."""
    tokens = np.random.default_rng(n).integers(0, 60_000, 24).astype("<u2")
    mixed = [int(value) for value in ngrams.mix(tokens.astype(np.uint64))]
    base = 0x9E3779B97F4A7C15
    sums = [
        sum(mixed[begin + place] * base ** (n - 1 - place) for place in range(n)) % 2**64
        for begin in range(len(tokens) - n + 1)
    ]
    assert ngrams.window_hashes(tokens, n).tolist() == ngrams.mix(np.array(sums, dtype=np.uint64)).tolist()


@pytest.mark.parametrize("n", [1, 2, 5, 13, 16])
@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_a_hundred_thousand_windows_do_not_collide(n, dtype):
    tokens = np.random.default_rng(n).integers(0, 50_000, 100_000).astype(dtype)
    distinct = np.unique(np.lib.stride_tricks.sliding_window_view(tokens, n), axis=0)
    hashes = np.unique(ngrams.window_hashes(tokens, n))
    assert len(hashes) == len(distinct)
    for part in (hashes >> np.uint64(32), hashes & np.uint64(2**32 - 1)):  # both halves are used by themselves
        assert abs(part.mean() / 2**31 - 1) < 5 / np.sqrt(3 * len(part))


def test_the_mixer_is_the_published_one():
    """The first output of SplitMix64 seeded with 1234567, as given with the reference implementation in C."""
    assert ngrams.mix(np.array([1234567], dtype=np.uint64)).tolist() == [6457827717110365317]


@given(st.lists(TOKENS, min_size=1, max_size=8), st.integers(1, 6))
def test_ngrams_do_not_cross_documents(parts, n):
    hashes, places = ngrams.document_ngrams(as_documents(parts), n)
    expected = [(place, window) for place, part in enumerate(parts) for window in windows(part, n)]
    assert places.tolist() == [place for place, _ in expected]
    of_window = {window: ngrams.window_hashes(np.array(window, dtype="<u2"), n)[0] for _, window in expected}
    assert hashes.tolist() == [of_window[window] for _, window in expected]
