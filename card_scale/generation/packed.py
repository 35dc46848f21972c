"""Matrix products of a few rows on a CPU, with weights that are laid out for them once.

A pass has a handful of inputs. For them torch's float32 product spends most of its time on laying the whole matrix out
anew, so that a pass of two inputs took up to twice as long as one of one. oneDNN's layout can be made beforehand: torch
does so for the frozen weights of compiled models, with the two operations below (torch 2.13, of no public name).
"""

import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST = 2**18
"""Elements of a weight below which the call itself takes longer than the layout."""
LARGEST_SHARE = 0.25
"""Of the machine's memory that the laid-out copies may take."""


class LaidOut:
    """A weight, float32 [outputs, inputs], in oneDNN's layout. Copies and pickles of it are None: it is made anew."""

    def __init__(self, weight: Tensor):
        self.matrix = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
        self._made_of = _state(weight)

    def is_of(self, weight: Tensor) -> bool:
        """Whether it is still the same weight."""
        return self._made_of == _state(weight)

    def __reduce__(self):
        return type(None), ()


def _state(weight: Tensor) -> tuple:
    return weight.data_ptr(), weight._version, weight.dtype, weight.device


def laid_out(weight: Tensor) -> LaidOut | None:
    """The weight laid out; None for one that is too small to gain by it."""
    return LaidOut(weight) if weight.numel() >= SMALLEST else None


def product(hidden: Tensor, weight: Tensor, copy: LaidOut | None) -> Tensor:
    """hidden [..., inputs] @ weight^T; by the laid-out copy where there is one of this weight, and no gradient."""
    if copy is None or (weight.requires_grad and torch.is_grad_enabled()) or not copy.is_of(weight):
        return F.linear(hidden, weight)
    return torch.ops.mkldnn._linear_pointwise(hidden, copy.matrix, None, "none", [], "")


def is_possible(weights: list[Tensor]) -> bool:
    """Whether copies of the weights can be laid out, and have room."""
    if not torch.backends.mkldnn.is_available() or not hasattr(os, "sysconf"):
        return False
    room = LARGEST_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # A weight that is split over ranks is a tensor of another type.
    are_plain = all(type(w.data) is Tensor and w.device.type == "cpu" and w.dtype == torch.float32 for w in weights)
    return are_plain and sum(w.nbytes for w in weights) <= room


class Linear(nn.Linear):
    """A matrix product without bias."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)
        self.copy: LaidOut | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        return product(hidden, self.weight, self.copy)
