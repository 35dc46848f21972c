"""The loss of the updates between two log lines."""

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

    def __init__(self) -> None:
        self._total = self._weight = 0.0
        """Loss times normaliser, and normaliser, of the updates that have been read."""
        self._unread: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, loss: Tensor, normaliser: Tensor, refused: Tensor) -> None:
        """Add an update by scalars on the device, which is neither waited for nor given work; ``refused`` is not 0
        where it was not applied."""
        self._unread.append((loss, normaliser, refused))

    def take(self) -> float | None:
        """Return the mean, None where no update was applied, and begin anew. Waits for the device."""
        self._read()
        total, weight = self._total, self._weight
        self._total = self._weight = 0.0
        return total / weight if weight else None

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, so that a run that resumes between two log lines logs the same bits. Waits
        for the device."""
        self._read()
        return {STATE: [self._total, self._weight]}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's state."""
        if STATE in state:
            self._total, self._weight = state[STATE]

    def _read(self) -> None:
        """Add up what has not been read, one update after the other: in the same order wherever a run was stopped."""
        if not self._unread:
            return
        columns = torch.stack([torch.stack(column).double() for column in zip(*self._unread, strict=True)])
        self._unread.clear()
        for loss, weight, refused in zip(*columns.tolist(), strict=True):
            if not refused:  # its loss may be NaN
                self._total += loss * weight
                self._weight += weight
