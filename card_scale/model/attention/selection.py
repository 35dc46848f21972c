"""Which kernel computes a kind of attention on the device at hand."""

import torch

from card_scale.errors import ConfigurationError
from card_scale.model.attention.base import Attention
from card_scale.model.attention.dense import DenseAttention
from card_scale.model.attention.flex import FlexAttention
from card_scale.model.attention.fused import FusedAttention
from card_scale.model.attention.split import SplitAttention
from card_scale.objectives.attention import AttentionKind

BACKENDS: tuple[type[Attention], ...] = (FusedAttention, FlexAttention, SplitAttention, DenseAttention)
"""All kernels, the best first: fused ones where they know the mask, else FlexAttention where it has a backward pass."""


def resolve_backend(kind: AttentionKind, backend: str, device_type: str) -> type[Attention]:
    """The kernel of ``kind`` called ``backend``, or if that is "auto" the best that the device has.

    Raises ConfigurationError for a kernel that the kind or the device does not have.
    """
    of_kind = [kernel for kernel in BACKENDS if kernel.computes(kind)]
    valid = {kernel.backend: kernel for kernel in of_kind if device_type in kernel.trains_on}
    if backend == "auto":
        return next(iter(valid.values()))
    if backend not in valid:
        reason = ", where it has no backward pass" if backend in {kernel.backend for kernel in of_kind} else ""
        raise ConfigurationError(
            f"model.attention_backend is {backend}, but {kind.name.replace('_', ' ')} attention runs on a "
            f"{device_type}{reason}; valid here: auto, {', '.join(valid)}"
        )
    return valid[backend]


def usable_backend(kind: AttentionKind, backend: str, device: torch.device) -> str:
    """``backend`` if it computes a kind on the device, else "auto": for kinds that stand beside the objective's own."""
    computed = [kernel.backend for kernel in BACKENDS if kernel.computes(kind) and device.type in kernel.trains_on]
    return backend if backend in computed else "auto"


def create_attention(kind: AttentionKind, backend: str, device: torch.device) -> Attention:
    """The attention of ``kind`` by ``backend``, resolved and refused as by :func:`resolve_backend`."""
    return resolve_backend(kind, backend, device.type)(kind)
