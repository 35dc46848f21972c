"""RMSNorm for activations that may be sharded along the sequence."""

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension.

    Megatron's torch norm refuses sequence parallelism. Under it every tensor-parallel rank sees other positions, so the
    gradient of the replicated weight must be summed over the tensor-parallel group, which
    ``copy_to_tensor_model_parallel_region`` does in the backward pass.
    """

    def __init__(self, hidden: int, sequence_parallel: bool, epsilon: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))
        self.sharded_over = parallel_state.get_tensor_model_parallel_group() if sequence_parallel else None
        self.epsilon = epsilon

    def forward(self, hidden_states: Tensor) -> Tensor:
        weight = self.weight
        if self.sharded_over is not None:
            weight = copy_to_tensor_model_parallel_region(weight, group=self.sharded_over)
        return F.rms_norm(hidden_states, weight.shape, weight, self.epsilon)
