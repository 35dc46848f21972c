"""What a layer keeps for its backward pass, and what it computes there once more."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Recompute = Literal["none", "selective", "full"]

_DEAR = frozenset(
    {
        torch.ops.aten.mm.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_cudnn_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
        torch.ops.higher_order.flex_attention,
        # What tensor parallelism sums up. What it gathers is gathered once more, as Megatron's own layers do.
        torch.ops._c10d_functional.all_reduce.default,
        torch.ops._c10d_functional.reduce_scatter_tensor.default,
    }
)
"""Operations whose outputs are kept: matrix products, attention and sums over ranks."""


def recomputed(body: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Return ``body(*arguments)``, of which nothing but the arguments is kept for the backward pass."""
    # Nothing in a layer draws from a generator, so there is no random state to restore.
    return checkpoint(body, *arguments, use_reentrant=False, preserve_rng_state=False)


def selectively_recomputed(body: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Return ``body(*arguments)``, to be compiled: what :data:`_DEAR` gives is kept for the backward pass as far as it
    is needed there, and all between, norms, rotations and gates, is computed once more, within the kernels that use it.
    """
    contexts = functools.partial(create_selective_checkpoint_contexts, _keep_what_is_dear)
    return checkpoint(body, *arguments, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


def _keep_what_is_dear(_context: Any, operation: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _DEAR else CheckpointPolicy.PREFER_RECOMPUTE
