"""Which kernel computes the loss on the device at hand, and whether of all logits at once."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from card_scale.errors import ConfigurationError
from card_scale.model.cross_entropy import reference
from card_scale.model.cross_entropy.parts import PART_ELEMENTS, most_at_once
from card_scale.objectives import noise

CrossEntropy = Callable[[Tensor, Tensor, int, Tensor, dist.ProcessGroup], Tensor]
"""(logits, targets, shard_start, forbidden, group) to losses; see the reference."""


class LossKernel(NamedTuple):
    """How the head computes its losses."""

    cross_entropy: CrossEntropy
    most_elements: int | None
    """Logits up to which they are held all at once, None where they always are; beyond, PART_ELEMENTS at a time."""


def check(backend: str, device_type: str) -> None:
    """Raise ConfigurationError for a kernel that the device does not have."""
    if backend == "fused" and not _has_triton(device_type):
        raise ConfigurationError(
            f"model.loss_backend is fused, which runs on a GPU with Triton, and this is a {device_type}; valid here: "
            "auto, torch, chunked"
        )


def loss_kernel(backend: str, device: torch.device, item_bytes: int) -> LossKernel:
    """Return the kernel called ``backend``, or if that is "auto" the best that the device has for logits of so many
    bytes each. Raises ConfigurationError as :func:`check` does."""
    check(backend, device.type)
    if backend == "torch" or not _has_triton(device.type):
        kernel = reference.vocabulary_parallel_cross_entropy
    else:
        from card_scale.model.cross_entropy import fused

        kernel = fused.vocabulary_parallel_cross_entropy
    if backend == "chunked":
        return LossKernel(kernel, PART_ELEMENTS)
    if backend == "auto" and device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        return LossKernel(kernel, most_at_once(memory, item_bytes))
    return LossKernel(kernel, None)


def _has_triton(device_type: str) -> bool:
    return device_type == "cuda" and noise.has_triton()
