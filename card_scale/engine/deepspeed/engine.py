"""ZeRO 0-3: one DeepSpeed engine per pipeline stage, under Megatron's schedule.

DeepSpeed's own pipeline engine refuses ZeRO-2 and ZeRO-3. Here an ordinary engine shards one stage over its
data-parallel group and knows nothing of the pipeline; the schedule outside moves activations between stages.
"""

import collections
import functools

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_grad,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from card_scale.config import Config
from card_scale.distributed import process_groups
from card_scale.distributed.device import current_device
from card_scale.engine import gradients
from card_scale.engine.base import Judge, ShardingEngine, Stage
from card_scale.engine.deepspeed import adapter, settings
from card_scale.engine.materialize import materialized_parameters
from card_scale.engine.selection import compiles_layers
from card_scale.engine.state_keys import WEIGHT
from card_scale.model.gpt import GPT
from card_scale.model.weights import logical_weights


class _Chunks(nn.Module):
    """The stage's chunks as the one module that a DeepSpeed engine wraps."""

    def __init__(self, chunks: list[GPT]):
        super().__init__()
        self.chunks = nn.ModuleList(chunks)

    def forward(self, chunk: int, *arguments, **keywords) -> Tensor:
        return self.chunks[chunk](*arguments, **keywords)


class DeepSpeedEngine(ShardingEngine):
    """The sharding engine on DeepSpeed ZeRO."""

    def __init__(self, chunks: list[GPT], config: Config, compute_dtype: torch.dtype):
        super().__init__(chunks, config)
        adapter.prepare()
        self.zero_stage = settings.zero_stage(config)
        module = _Chunks(chunks)
        logical = [place for _, place in logical_weights(chunks)]
        resolved = settings.resolve(
            config,
            dist.get_world_size(process_groups.data_group()),
            sum(parameter.numel() for parameter in module.parameters()),
        )
        if self.zero_stage == 0:
            resolved["gradient_clipping"] = 0.0  # stage 0 leaves norm and clipping to us
        mpu = adapter.model_parallel_unit()
        made = materialized_parameters(module, current_device(), compute_dtype)
        if self.zero_stage == 3:
            adapter.partition_as_made(made, resolved, mpu)
        collections.deque(made, maxlen=0)  # what stage 3 has left, which is nothing
        self.take(module.parameters(), logical)
        adapter.mark_primary(self._weights)
        if self.zero_stage == 3 and compiles_layers(config, current_device().type):
            adapter.gather_layer_by_layer(chunks)
        self.engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=self.optimizer,
            mpu=mpu,
            dist_init_required=False,
            config=resolved,
        )
        if self.zero_stage == 3:
            adapter.reduce_norm_once(self.engine.optimizer)
            adapter.register_tied_embedding(module, chunks)
        self._state_linked = False
        # Stage 0's engine refuses a backward pass that it did not start; its bare module does not.
        wrapped = self.engine.module if self.zero_stage == 0 else self.engine
        self.stages = [
            Stage(chunk, lambda *a, index=index, **k: wrapped(index, *a, **k)) for index, chunk in enumerate(chunks)
        ]

    def before_backward(self) -> None:
        if self.zero_stage > 0:
            adapter.reset_backward_hooks(self.engine.optimizer)

    def step(self, learning_rate: float, judge: Judge) -> Tensor:
        self.set_learning_rate(learning_rate)
        norm: list[Tensor] = []

        @functools.cache  # asked again for every group of parameters
        def refusal() -> Tensor:
            if self.zero_stage > 0:
                norm.append(adapter.gradient_norm(optimizer))
            return judge(norm[0])

        self.optimizer.refusal = refusal
        # DeepSpeed reduces the gradients in its engine's step and then calls its optimizer's (seen in 0.19.8). Between
        # the two is the place for what it does not know of: the tied copies at every stage, norm and clipping at stage
        # 0.
        optimizer = self.engine.optimizer
        inner_step = optimizer.step

        def finish_gradients_and_step(*arguments, **keywords):
            self._sum_tied_gradients()
            if self.zero_stage == 0:
                norm.append(self._clip_unsharded())
            return inner_step(*arguments, **keywords)

        optimizer.step = finish_gradients_and_step
        try:
            self.engine.step()
        finally:
            del optimizer.step
        if not refusal.cache_info().currsize:
            # DeepSpeed itself has left out the update, whose norm was not finite.
            refusal()
            adapter.forget_gradients(self.engine.optimizer, self.zero_stage)
            self.optimizer.ensure_state(self.master_weights())
        return norm[0]

    def _sum_tied_gradients(self) -> None:
        for parameter in self.tied:
            if self.zero_stage == 0:
                gradients.sum_over_tied_copies(parameter.grad)
            else:
                gradient = safe_get_full_grad(parameter)
                gradients.sum_over_tied_copies(gradient)
                adapter.set_full_gradient(self.engine.optimizer, self.zero_stage, parameter, gradient)

    def _clip_unsharded(self) -> Tensor:
        held = [(parameter.grad, logical) for parameter, logical in self._weights]
        norm = gradients.global_norm(held, [process_groups.model_group()])
        gradients.clip([gradient for gradient, _ in held], norm, self.config.optimizer.clip)
        return norm

    def full_state(self, parameter: nn.Parameter, key: str) -> Tensor:
        if self.zero_stage == 0:
            state = parameter if key == WEIGHT else self.optimizer.state[parameter][key]
            return state.detach().float()
        if key == WEIGHT:
            return safe_get_full_fp32_param(parameter).detach()
        self._link_optimizer_state()
        return safe_get_full_optimizer_state(parameter, key).detach()

    @torch.no_grad()
    def set_full_state(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        if self.zero_stage == 0:
            (parameter if key == WEIGHT else self.optimizer.state[parameter][key]).copy_(value)
        elif self.zero_stage == 3 and key == WEIGHT:
            safe_set_local_fp32_param(parameter, adapter.partition(parameter, value))
        elif self.zero_stage == 3:
            safe_set_local_optimizer_state(parameter, adapter.partition(parameter, value), key)
        elif key == WEIGHT:
            safe_set_full_fp32_param(parameter, value)
        else:
            self._link_optimizer_state()
            safe_set_full_optimizer_state(parameter, value, key)

    def create_optimizer_state(self, step: int) -> None:
        super().create_optimizer_state(step)
        self._state_linked = False

    def _link_optimizer_state(self) -> None:
        """Prepare DeepSpeed's accessors, once the optimizer's states exist."""
        if not self._state_linked:
            adapter.link_optimizer_state(self.engine.optimizer, self.zero_stage)
            self._state_linked = True

    def master_weights(self) -> list[Tensor]:
        if self.zero_stage == 0:
            return [parameter for parameter, _ in self._weights]
        return adapter.master_weights(self.engine.optimizer, self.zero_stage)

    def publish_weights(self) -> None:
        if self.zero_stage > 0:
            adapter.publish_weights(self.engine.optimizer, self.zero_stage)
