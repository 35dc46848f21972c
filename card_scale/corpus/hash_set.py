"""A fixed set of 64-bit hashes that many others are looked up in, kept in files that processes share."""

from pathlib import Path

import numpy as np

_FILTER_BITS = 4  # filter entries per hash, as a power of two: 1 in 16 hashes that are not in the set passes the filter


class HashSet:
    """Sorted hashes behind a filter of one byte per possible prefix, which spares most look-ups their search.

    Attributes:
        values: uint64 [N], ascending, no hash twice.
    """

    def __init__(self, values: np.ndarray, prefixes: np.ndarray):
        self.values = values
        self._prefixes = prefixes  # bool [2**bits], of the hashes' upper bits
        self._shift = np.uint64(64 - (len(prefixes).bit_length() - 1))

    @classmethod
    def of(cls, values: np.ndarray) -> "HashSet":
        """The set of ``values``, uint64, ascending, no hash twice; the hashes must be well mixed."""
        bits = max(1, len(values).bit_length() + _FILTER_BITS)
        prefixes = np.zeros(1 << bits, dtype=bool)
        prefixes[(values >> np.uint64(64 - bits)).astype(np.intp)] = True
        return cls(values, prefixes)

    def save(self, path: Path) -> None:
        """Write the set into a new directory."""
        path.mkdir()
        np.save(path / "values.npy", self.values)
        np.save(path / "prefixes.npy", self._prefixes)

    @classmethod
    def open(cls, path: Path) -> "HashSet":
        """Map a saved set: any number of processes share its memory."""
        return cls(np.load(path / "values.npy", mmap_mode="r"), np.load(path / "prefixes.npy", mmap_mode="r"))

    def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of the ``hashes``, uint64 [H], are in the set.

        Returns:
            Their places in ``hashes``, ascending, and their places in ``values``: int64 [F] each.
        """
        places = np.flatnonzero(self._prefixes[(hashes >> self._shift).astype(np.intp)])
        if not len(self.values):
            return places[:0], places[:0]
        candidates = hashes[places]
        found = np.minimum(np.searchsorted(self.values, candidates), len(self.values) - 1)
        equal = self.values[found] == candidates
        return places[equal], found[equal]
