"""Parameters made on the meta device are given memory one at a time, so that whoever shards them never holds all."""

from collections.abc import Iterator

import torch
from torch import nn


def materialized_parameters(module: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[nn.Parameter]:
    """Replace each parameter of ``module``, in the order of ``module.parameters()``, by an uninitialised one.

    Yields it once it is in place; what tensor parallelism has noted on the former one stands on the new one too.
    """
    for owner in module.modules():
        for name, empty in list(owner.named_parameters(recurse=False)):
            parameter = nn.Parameter(torch.empty(empty.shape, device=device, dtype=dtype), empty.requires_grad)
            parameter.__dict__.update(empty.__dict__)
            owner.register_parameter(name, parameter)
            yield parameter
