"""Makes Megatron-core run on CPU with gloo.

Megatron-core (seen in 0.16.1) names ``device="cuda"`` in tensor factories (schedules, p2p) and asks
``torch.cuda.current_device()`` for the device of its communication buffers. :func:`install` answers that question with
"cpu" where no GPU is present; :func:`factories_on_cpu` redirects the factories while a schedule runs.
"""

import contextlib
import sys

import torch
from torch.overrides import TorchFunctionMode


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


class _CudaFactoriesOnCpu(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        named = kwargs.get("device")
        if named is not None and torch.device(named).type == "cuda":
            kwargs = {**kwargs, "device": "cpu"}
        return function(*args, **kwargs)


def factories_on_cpu() -> contextlib.AbstractContextManager:
    """Return a context in which factories that name "cuda" make CPU tensors; on a GPU machine it does nothing."""
    return contextlib.nullcontext() if torch.cuda.is_available() else _CudaFactoriesOnCpu()
