"""Full sharding with torch's FSDP2 (``fully_shard``), the second engine and the oracle of the first."""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from card_scale.config import Config
from card_scale.distributed import process_groups
from card_scale.distributed.device import current_device
from card_scale.engine import gradients
from card_scale.engine.base import Judge, ShardingEngine, Stage
from card_scale.engine.state_keys import WEIGHT
from card_scale.model.gpt import GPT
from card_scale.model.weights import logical_weights


class Fsdp2Engine(ShardingEngine):
    """The sharding engine on FSDP2.

    With several micro-batches per update a chunk's parameters stay gathered from the first forward to the last backward
    pass: one gather per update instead of two per micro-batch, at the price of holding the stage's weights in the
    compute precision.
    """

    def __init__(self, chunks: list[GPT], config: Config, compute_dtype: torch.dtype):
        super().__init__(chunks, config)
        group = process_groups.data_group()
        mesh = DeviceMesh.from_group(group, current_device().type)
        per_rank = config.train.global_batch // dist.get_world_size(group)
        self.keep_gathered = per_rank > config.train.micro_batch
        logical = [place for _, place in logical_weights(chunks)]
        narrow = compute_dtype != torch.float32
        policy = MixedPrecisionPolicy(
            param_dtype=compute_dtype if narrow else None,
            reduce_dtype=torch.float32 if narrow else None,
            # Rotary angles must reach the layers in float32.
            cast_forward_inputs=False,
        )
        for chunk in chunks:
            for module in (*chunk.layers.values(), chunk):
                fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=not self.keep_gathered)
            # Still on the meta device: only now memory is taken, for the shards alone.
            chunk.to_empty(device=current_device())
        self.take((parameter for chunk in chunks for parameter in chunk.parameters()), logical)
        self.stages = [Stage(chunk, chunk) for chunk in chunks]
        if self.keep_gathered:
            for module in self._sharded_modules():
                module.set_reshard_after_backward(False)

    def step(self, learning_rate: float, judge: Judge) -> Tensor:
        self.set_learning_rate(learning_rate)
        held = [(_local(parameter.grad), logical) for parameter, logical in self._weights]
        for parameter in self.tied:
            # Both copies have one shape and one sharding: their shards correspond.
            gradients.sum_over_tied_copies(_local(parameter.grad))
        norm = gradients.global_norm(held, [process_groups.data_group(), process_groups.model_group()])
        gradients.clip([gradient for gradient, _ in held], norm, self.config.optimizer.clip)
        refused = judge(norm)
        self.optimizer.refusal = lambda: refused
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.publish_weights()
        return norm

    def full_state(self, parameter: nn.Parameter, key: str) -> Tensor:
        state = parameter if key == WEIGHT else self.optimizer.state[parameter][key]
        return state.detach().full_tensor()

    @torch.no_grad()
    def set_full_state(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        state = parameter if key == WEIGHT else self.optimizer.state[parameter][key]
        whole = value.to(parameter.device, parameter.dtype)
        # Every rank holds the whole value: src_data_rank None shards it without communication.
        state.copy_(distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None))

    def master_weights(self) -> list[Tensor]:
        return [parameter for parameter, _ in self._weights]

    def publish_weights(self) -> None:
        # Gathered copies are of the weights before the update; drop them.
        for module in self._sharded_modules():
            module.reshard()

    def _sharded_modules(self) -> Iterator[FSDPModule]:
        for chunk in self.chunks:
            yield from (module for module in chunk.modules() if isinstance(module, FSDPModule))


def _local(tensor: DTensor) -> Tensor:
    return tensor.to_local()
