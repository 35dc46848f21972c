"""Samples: clean tokens with what their noise and their place in the run are a function of."""

from collections.abc import Callable
from typing import NamedTuple

import torch


class Samples(NamedTuple):
    """Rows of clean tokens, on the CPU as they are read, on the device as they are trained on."""

    tokens: torch.Tensor
    """int64 [B, L + 1]"""
    sample_ids: torch.Tensor
    """int64 [B]"""
    epochs: torch.Tensor
    """int64 [B]"""
    global_positions: torch.Tensor
    """int64 [B]: place of each sample in the whole run, update * batch_size + place in the global batch. In an
    evaluation a draw over the whole validation set counts as one batch."""
    batch_size: int
    """Samples of the global batch over all ranks: those that share the strata of the noise levels."""
    valid: torch.Tensor | None = None
    """bool [B]: false for rows that do not count: those that only fill up the last batch of an evaluation, and those of
    training that could not be read; None where all count."""
    update: int = 0
    """Number of the update that they are for, from 0; in an evaluation 0."""

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The tensors by which two ranks' samples are compared."""
        return self.tokens, self.sample_ids, self.epochs, self.global_positions

    def to(self, device: torch.device) -> "Samples":
        """The same samples on a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Samples":
        """The same samples in memory from which :meth:`to` a GPU copies without waiting for it."""
        return self._each(lambda tensor: tensor.pin_memory())

    def rows(self, rows: slice | torch.Tensor) -> "Samples":
        """Some of the rows, by a slice or a mask; they still belong to the whole global batch."""
        return self._each(lambda tensor: tensor[rows])

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Samples":
        tokens, sample_ids, epochs, global_positions = map(change, self.tensors())
        valid = None if self.valid is None else change(self.valid)
        return Samples(tokens, sample_ids, epochs, global_positions, self.batch_size, valid, self.update)

    def resampled(self, resample: bool) -> "Samples":
        """The same samples, or unless ``resample`` ones whose noise depends on their id, not on epoch and batch."""
        if resample:
            return self
        return self._replace(epochs=torch.zeros_like(self.epochs), global_positions=self.sample_ids, batch_size=1)
