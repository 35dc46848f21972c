"""The loss of the updates between two log lines, added up on the device."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

STATE = "interval_loss"
"""Key of a checkpoint's state."""


class IntervalLoss:
    """The mean of the loss over the applied updates since it was last taken, each with the weight of its normaliser.

    That is the loss of all their samples taken together, and what Megatron-LM logs as ``lm loss``. Every rank holds the
    same sums, since it is told the global loss and the global normaliser.
    """

    def __init__(self, device: torch.device):
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        """Loss times normaliser, and normaliser."""

    def add(self, loss: Tensor, normaliser: Tensor, refused: Tensor) -> None:
        """Add an update: float64 scalars and a bool scalar, all on the device, which is not waited for."""
        kept = torch.stack((loss * normaliser, normaliser))
        # A refused loss may be NaN, which no factor of 0 removes.
        self._sums = self._sums + torch.where(refused, torch.zeros_like(kept), kept)

    def take(self) -> float | None:
        """Return the mean, None where no update was applied, and begin anew. Waits for the device."""
        total, weight = self._sums.tolist()
        self._sums = torch.zeros_like(self._sums)
        return total / weight if weight else None

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, so that a run that resumes between two log lines logs the same."""
        return {STATE: self._sums.tolist()}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's state."""
        if STATE in state:
            self._sums.copy_(torch.tensor(state[STATE], dtype=torch.float64))
