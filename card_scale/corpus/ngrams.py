"""64-bit hashes of token n-grams, vectorised: what decontamination and near-duplicate search compare.

A hash is a polynomial in the mixed values of the n tokens, modulo 2**64, and mixed once more so that all of its bits
are equally good. Two different n-grams agree with a probability of about 2**-64: 1e12 n-grams looked up among 1e7
others give about one false match in two such searches.
"""

import numpy as np

from card_scale.data.documents import Documents

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd; consecutive powers differ in their low bits too
_BLOCK = 1 << 15  # windows hashed at a time: what stays in a core's cache is several times faster


def mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014), a bijection: uint64 [...] to uint64 [...]."""
    values = values + _BASE
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def window_hashes(tokens: np.ndarray, n: int) -> np.ndarray:
    """Hash every window of ``n`` neighbouring tokens.

    Args:
        tokens: unsigned integers [T].
        n: at least 1.

    Returns:
        uint64 [max(0, T - n + 1)], equal for equal windows.
    """
    count = max(0, len(tokens) - n + 1)
    hashes = np.empty(count, dtype=np.uint64)
    for begin in range(0, count, _BLOCK):
        end = min(begin + _BLOCK, count)
        hashes[begin:end] = _polynomial(mix(tokens[begin : end + n - 1].astype(np.uint64)), n)
    return mix(hashes)


def _polynomial(values: np.ndarray, n: int) -> np.ndarray:
    """sum_k values[i + k] * _BASE**(n - 1 - k) for each i, by doubling: log2(n) instead of n passes."""
    power = np.array([_BASE])  # an array, because numpy warns of a scalar's overflow and not of an array's
    windows, size = values, 1  # of ``size`` tokens, a power of two
    result, covered = values[:0], 0  # of the first ``covered`` tokens of each window
    while True:
        if n & size:
            rest = windows[covered:]
            result = result[: len(rest)] * power + rest if covered else windows
            covered += size
        if covered == n:
            return result
        windows, size, power = windows[:-size] * power + windows[size:], 2 * size, power * power


def document_ngrams(documents: Documents, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Hash the n-grams that lie inside one document, repeated ones as often as they occur.

    Returns:
        hashes uint64 [G], and the places of their documents in ``documents``, int64 [G], ascending.
    """
    places = np.repeat(np.arange(len(documents.ends)), np.diff(documents.ends, prepend=0))
    count = max(0, len(places) - n + 1)
    inside = places[:count] == places[n - 1 :]
    return window_hashes(documents.tokens, n)[inside], places[:count][inside]
