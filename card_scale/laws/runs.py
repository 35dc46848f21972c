"""The numbers of finished training runs that a law is fitted to."""

from typing import NamedTuple

import numpy as np

from card_scale.laws.compute import flops
from card_scale.laws.formulas import Array


class Runs(NamedTuple):
    """Columns of a table of runs, float64 [n] each."""

    N: Array
    """Parameters."""
    D: Array
    """Tokens processed."""
    U: Array
    """Unique tokens among them."""
    loss: Array
    """Validation loss in nats per token."""
    counted_flops: Array | None = None
    """Training FLOPs as the trainer counted them, if it did."""

    def take(self, rows: np.ndarray) -> "Runs":
        """Return the runs that a bool mask [n] or an index array picks."""
        counted = None if self.counted_flops is None else self.counted_flops[rows]
        return Runs(self.N[rows], self.D[rows], self.U[rows], self.loss[rows], counted)

    def mean_over_seeds(self) -> "Runs":
        """Return one run for each size, tokens, unique tokens and cost, with the mean loss."""
        columns = np.stack([self.N, self.D, self.U, self.cost()], axis=1)
        cells, cell = np.unique(columns, axis=0, return_inverse=True)
        cell = cell.ravel()
        loss = np.bincount(cell, weights=self.loss) / np.bincount(cell)
        size, tokens, unique, cost = cells.T
        return Runs(size, tokens, unique, loss, cost)

    def flops(self) -> Array:
        """Return 6 N D of each run, the compute of Chinchilla's allocation."""
        return flops(self.N, self.D)

    def cost(self) -> Array:
        """Return the FLOPs that were counted, or 6 N D: objectives differ in what a token costs."""
        return self.flops() if self.counted_flops is None else self.counted_flops
