"""Matrix products of a few rows on a CPU, with weights that are laid out for them once.

A pass has a handful of inputs. For them torch's float32 product spends most of its time on laying the whole matrix out
anew, so that a pass of two inputs took up to twice as long as one of one. oneDNN's layout can be made beforehand: torch
does so for the frozen weights of compiled models, with the two operations below (torch 2.13, of no public name).
"""

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST = 2**18
"""Elements of a weight below which the call itself takes longer than the layout."""
LARGEST_SHARE = 0.5
"""Of the free memory that the laid-out copies may take."""


def packed(weight: Tensor) -> Tensor | None:
    """The weight, float32 [outputs, inputs], in oneDNN's layout; None for one that is too small to gain by it."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None) if weight.numel() >= SMALLEST else None


def product(hidden: Tensor, weight: Tensor, laid_out: Tensor | None) -> Tensor:
    """hidden [..., inputs] @ weight^T; by the ``laid_out`` copy of the weight where there is one."""
    if laid_out is None:
        return F.linear(hidden, weight)
    return torch.ops.mkldnn._linear_pointwise(hidden, laid_out, None, "none", [], "")


def is_possible(weight: Tensor, copied_bytes: int) -> bool:
    """Whether copies of so many bytes can be laid out for weights like this one, and have room."""
    is_plain = weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    return is_plain and copied_bytes <= LARGEST_SHARE * psutil.virtual_memory().available


class Linear(nn.Linear):
    """A matrix product without bias."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)
        self.laid_out: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        return product(hidden, self.weight, self.laid_out)
