"""Dropout as a pure function of (sample, epoch, layer, position, feature).

A random-number generator would make the dropped units depend on the layout, on the micro-batch order and on
recomputation. Here each unit's fate is a hash of where it stands, so no layout and no resume changes it.
"""

import torch
from torch import Tensor

_MASK_32 = 0xFFFFFFFF


def _mix(words: Tensor) -> Tensor:
    """Return the words (int64 holding 32 bits) through murmur3's 32-bit finaliser."""
    words = words ^ (words >> 16)
    words = (words * 0x85EBCA6B) & _MASK_32
    words = words ^ (words >> 13)
    words = (words * 0xC2B2AE35) & _MASK_32
    return words ^ (words >> 16)


def dropout(
    hidden_states: Tensor, keys: Tensor | None, probability: float, *, site: int | Tensor, first_position: int
) -> Tensor:
    """Zero units with the given probability and scale the others by 1 / (1 - probability).

    Args:
        hidden_states: [positions, B, hidden]; this rank's share of the sequence.
        keys: int64 [B, 2], two words of at most 32 bits per sample; None (evaluation) drops nothing.
        probability: of a unit being dropped.
        site: number of the place in the model, another one for every dropout; a tensor, int64 scalar, where one graph
            serves several.
        first_position: the sequence position of ``hidden_states[0]``.
    """
    if keys is None or probability == 0.0:
        return hidden_states
    positions, _, hidden = hidden_states.shape
    device = hidden_states.device
    row = torch.arange(first_position, first_position + positions, device=device) * hidden
    unit = (row[:, None, None] + torch.arange(hidden, device=device)) & _MASK_32
    word = _mix(_mix(unit ^ keys[:, 0, None]) + _mix(keys[:, 1, None] + site) & _MASK_32)
    kept = word >= round(probability * 2**32)
    return hidden_states * kept / (1.0 - probability)
