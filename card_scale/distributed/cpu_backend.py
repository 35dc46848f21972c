"""Makes Megatron-core run on CPU with gloo.

Megatron-core (seen in 0.16.1) asks ``torch.cuda.current_device()`` for the device of its communication buffers, and its
schedules count tokens in a tensor on "cuda", whatever there is. :func:`install` answers both with the CPU where no GPU
is present.
"""

import sys
from typing import Any

import torch
from megatron.core.pipeline_parallel import schedules
from torch import Tensor


class _TorchWithoutCuda:
    """What the schedules call ``torch``. Only their own count of tokens names "cuda"; what they call is untouched."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def zeros(self, *size: Any, **keywords: Any) -> Tensor:
        return torch.zeros(*size, **keywords | {"device": "cpu"})


def install() -> None:
    """Redirect Megatron's questions to ``torch.cuda``. Call it before anything of Megatron is built; GPU: no effect."""
    if torch.cuda.is_available():
        return
    torch.cuda.current_device = lambda: "cpu"
    torch.cuda.synchronize = lambda *_: None
    # A compiled layer takes the answer as a constant, as it would that of the function replaced (torch 2.13).
    tracing = sys.modules.get("torch._dynamo.variables.torch")
    if tracing is not None:
        tracing.constant_fold_functions[torch.cuda.current_device] = None
    schedules.torch = _TorchWithoutCuda()
