"""Peak memory of a training step, measured."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

MEANINGS = {
    "cuda": "peak of the CUDA allocator during a step: states, activations, workspaces",
    "cpu": "most bytes that autograd keeps at one time for a step's backward passes; no states, no workspaces",
}
"""What :attr:`PeakMemory.bytes` counts, by device type."""


class PeakMemory:
    """Measures the steps made inside it, see :data:`MEANINGS`.

    A CPU has no allocator to ask, so there the tensors saved for the backward pass are counted, each storage once.
    """

    def __init__(self, device: torch.device, modules: Sequence[nn.Module]):
        """Parameters of ``modules`` are not counted on a CPU: they are states, though autograd keeps them too."""
        self.bytes = 0
        self._device = device
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, _Kept.take)
        self._modules = modules
        self._keepers: Counter[int] = Counter()
        self._kept_bytes = 0

    def __enter__(self) -> "PeakMemory":
        if self._device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._hooks.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
            self.bytes = torch.cuda.max_memory_allocated(self._device)
        else:
            self._hooks.__exit__(*exception)

    def _keep(self, tensor: Tensor) -> "_Kept":
        return _Kept(self, tensor)

    def parameter_storages(self) -> set[int]:
        """Return where the parameters lie now: full sharding gathers them anew in every pass."""
        parameters = (parameter for module in self._modules for parameter in module.parameters())
        return {_address(parameter) for parameter in parameters if not isinstance(parameter, DTensor)}

    def hold(self, address: int, size: int) -> None:
        """Count a storage until :meth:`release`; one that is held already costs nothing more."""
        if not self._keepers[address]:
            self._kept_bytes += size
        self._keepers[address] += 1
        self.bytes = max(self.bytes, self._kept_bytes)

    def release(self, address: int, size: int) -> None:
        """Take back one :meth:`hold`."""
        self._keepers[address] -= 1
        if not self._keepers[address]:
            self._kept_bytes -= size


class _Kept:
    """A tensor that a node of the graph keeps; it dies with the node, or when the node's backward pass is over."""

    def __init__(self, owner: PeakMemory, tensor: Tensor):
        self.owner, self.tensor = owner, tensor
        self.address, self.size = _address(tensor), tensor.untyped_storage().nbytes()
        self.counted = self.address not in owner.parameter_storages()
        if self.counted:
            owner.hold(self.address, self.size)

    def take(self) -> Tensor:
        return self.tensor

    def __del__(self) -> None:
        if self.counted:
            self.owner.release(self.address, self.size)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
