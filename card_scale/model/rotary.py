"""Rotary positions: dimensions i and i + size / 2 of a head turn by position / base^(2i / size) (Su et al., RoFormer).

Megatron's own works out cosines and sines in every layer, and joins halves of heads that it has cut apart, for which a
compiled layer reads and writes them once more (megatron-core 0.16.1, torch 2.13).
"""

import torch
from torch import Tensor

Rotation = tuple[Tensor, Tensor]
"""Cosines, [M, B or 1, 1, 1, head size / 2], and sines, [M, B or 1, 1, 2, head size / 2], negative for the first half
of a head. B is 1 where all samples share one row."""


def rotation(angles: Tensor, dtype: torch.dtype) -> Rotation:
    """Return what turns heads by ``angles``, float32 [M, B or 1, head size / 2]; all layers share it.

    ``dtype`` is that of the activations: in a wider one every operation that is not compiled would be as wide.
    """
    cosines, sines = angles.cos().to(dtype), angles.sin().to(dtype)
    return cosines[:, :, None, None], torch.stack((-sines, sines), dim=2)[:, :, None]


def rotated(states: Tensor, by: Rotation) -> Tensor:
    """Return queries or keys, [M, B, heads, head size], turned."""
    cosines, sines = by
    # As two halves side by side that change places: none is copied, and one kernel reads and writes each number once.
    halves = states.view(*states.shape[:-1], 2, cosines.shape[-1])
    return (halves * cosines + halves.flip(-2) * sines).flatten(-2)
