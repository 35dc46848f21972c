"""Where each local parameter lies in the whole model: the coordinates of initialisation and checkpoints.

A parameter is described by its whole-model name, its global shape and the boxes of the global tensor that this rank
holds, none of which mention the layout that another run may have.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType

import torch
from megatron.core import parallel_state
from torch import Tensor, nn

from card_scale.model.gpt import GPT

_LOGICAL_NAMES = MappingProxyType({"head.norm.weight": "final_norm.weight", "head.projection.weight": "head.weight"})
"""Whole-model names of parameters that are called otherwise in their module; checkpoints have them."""


@dataclass(frozen=True)
class ShardSlice:
    """Rows (or columns) ``local`` of a rank's parameter are rows (or columns) ``whole`` of the global tensor."""

    dimension: int
    local: slice
    whole: slice


@dataclass(frozen=True)
class LogicalWeight:
    """One parameter of this rank in whole-model coordinates.

    ``slices`` cover what the rank holds, along the dimension that tensor parallelism splits (0 for a replicated
    parameter). ``is_primary`` marks the one copy of each element (within the tensor x pipeline group) that enters norms
    and checkpoints: not a further tensor-parallel replica, and not the last stage's copy of a tied embedding.
    """

    name: str
    global_shape: tuple[int, ...]
    slices: tuple[ShardSlice, ...]
    is_primary: bool

    @property
    def decayed(self) -> bool:
        """Whether weight decay applies: to matrices, not to norms."""
        return len(self.global_shape) > 1

    @property
    def dimension(self) -> int:
        """The dimension along which slices are cut."""
        return self.slices[0].dimension

    def select(self, whole: Tensor) -> Tensor:
        """Return this rank's part of the global tensor."""
        parts = [whole.narrow(self.dimension, p.whole.start, p.whole.stop - p.whole.start) for p in self.slices]
        return torch.cat(parts, self.dimension) if len(parts) > 1 else parts[0]


def logical_weights(chunks: list[GPT]) -> Iterator[tuple[nn.Parameter, LogicalWeight]]:
    """Yield each parameter of this rank's model chunks with its place in the whole model, in module order."""
    size = parallel_state.get_tensor_model_parallel_world_size()
    rank = parallel_state.get_tensor_model_parallel_rank()
    for chunk in chunks:
        for module_name, parameter in chunk.named_parameters():
            name = _LOGICAL_NAMES.get(module_name, module_name)
            tied_copy = name == "head.weight" and chunk.tied
            split = _split_dimension(name)
            dimension, parts = (0, 1) if split is None else (split, size)
            part = 0 if split is None else rank
            shape = list(parameter.shape)
            # A gated MLP's first matrix is [gate; up]; each half is split on its own.
            halves = 2 if ".mlp.linear_fc1." in name else 1
            extent = shape[dimension] // halves
            shape[dimension] *= parts
            slices = tuple(
                ShardSlice(
                    dimension,
                    slice(half * extent, (half + 1) * extent),
                    slice((half * parts + part) * extent, (half * parts + part + 1) * extent),
                )
                for half in range(halves)
            )
            yield (
                parameter,
                LogicalWeight(
                    name="embedding.weight" if tied_copy else name,
                    global_shape=tuple(shape),
                    slices=slices,
                    is_primary=not tied_copy and (split is not None or rank == 0),
                ),
            )


def _split_dimension(name: str) -> int | None:
    """Return the dimension that tensor parallelism splits, None for a replicated parameter."""
    if name.endswith("norm.weight"):
        return None
    return 1 if name.endswith(("linear_proj.weight", "linear_fc2.weight")) else 0
