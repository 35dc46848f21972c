"""One decoder layer: Megatron-core's attention and gated MLP between our norms, with residuals.

Pre-norm, rotary positions, SwiGLU, no biases: the shape of Llama's layers, whatever the objective.
"""

import functools

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    layers,
    scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from card_scale.model.attention.base import AttentionFunction, CoreAttention
from card_scale.model.dropout import dropout
from card_scale.model.norm import RMSNorm
from card_scale.model.recomputation import Recompute, recomputed, selectively_recomputed
from card_scale.model.rotary import Rotation

MOST_COMPILED_VERSIONS = 128


class ColumnParallelLinear(layers.ColumnParallelLinear):
    """Megatron's, which starts collectives in its backward pass and waits for them behind a product: no part of a graph
    (megatron-core 0.16.1). In a compiled layer they are operations of the graph, which torch orders by itself; under
    sequence parallelism the gathered input is then kept for the backward pass instead of gathered anew."""

    def _forward_impl(self, input, weight, *arguments, **keywords):
        if torch.compiler.is_compiling():
            if keywords["sequence_parallel"]:
                input = gather_from_sequence_parallel_region(input, group=self.tp_group)
            elif keywords["allreduce_dgrad"]:
                input = copy_to_tensor_model_parallel_region(input, group=self.tp_group)
            keywords = {**keywords, "sequence_parallel": False, "allreduce_dgrad": False}
        return super()._forward_impl(input, weight, *arguments, **keywords)


class RowParallelLinear(layers.RowParallelLinear):
    """Megatron's, which looks up its group at each call and warns about it: a graph break (megatron-core 0.16.1)."""

    def _forward_impl(self, input, weight, *arguments, **keywords):
        return super()._forward_impl(input, weight, *arguments, **{**keywords, "tp_group": self.tp_group})


def attention_spec() -> ModuleSpec:
    """Return the spec of self-attention; which positions see which is an argument of the forward pass."""
    return ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": AttnMaskType.no_mask},
        submodules=SelfAttentionSubmodules(
            linear_qkv=ColumnParallelLinear, core_attention=CoreAttention, linear_proj=RowParallelLinear
        ),
    )


def feed_forward_spec() -> ModuleSpec:
    """Return the spec of the gated feed-forward network."""
    return ModuleSpec(
        module=MLP, submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    )


class DecoderLayer(nn.Module):
    """hidden += attention(norm(hidden)); hidden += mlp(norm(hidden)).

    Where the attention answers the first positions only, those that predict, the layer goes on with them.
    """

    def __init__(self, config: TransformerConfig, index: int, recompute: Recompute):
        """Build layer ``index`` (0-based, over the whole model); one that recomputes selectively is to be compiled."""
        super().__init__()
        self.index = index
        # Not a number, of which each layer would have a graph of its own.
        self.dropout_site = torch.tensor(2 * index + 1, device="cpu")
        self.dropout = config.hidden_dropout
        self.recompute = recompute
        self.tensor_rank = parallel_state.get_tensor_model_parallel_rank()
        self.tensor_size = parallel_state.get_tensor_model_parallel_world_size()
        self.tensor_group = parallel_state.get_tensor_model_parallel_group()
        self.sequence_parallel = config.sequence_parallel
        self.attention_norm = RMSNorm(config.hidden_size, config.sequence_parallel, config.layernorm_epsilon)
        self.attention = build_module(attention_spec(), config=config, layer_number=index + 1)
        self.mlp_norm = RMSNorm(config.hidden_size, config.sequence_parallel, config.layernorm_epsilon)
        self.mlp = build_module(
            feed_forward_spec(),
            config=config,
            ffn_hidden_size=config.ffn_hidden_size,
            tp_group=self.tensor_group,
        )
        self._run = self._forward

    def compile_forward(self) -> None:
        """Compile the layer as one graph for each shape; an error where it cannot be one.

        Not one for several shapes: where wide and narrow layers take turns, full recomputation would meet another graph
        than the forward pass has run, which torch refuses (2.13). All layers, and every kind of attention that a
        process measures in turn, are versions of one function for torch.compile, which by default gives up at the
        ninth.
        """
        torch._dynamo.config.recompile_limit = MOST_COMPILED_VERSIONS
        body = (
            functools.partial(selectively_recomputed, self._forward) if self.recompute == "selective" else self._forward
        )
        self._run = torch.compile(body, fullgraph=True, dynamic=False)

    def forward(
        self, hidden_states: Tensor, turn: Rotation, attend: AttentionFunction, dropout_keys: Tensor | None
    ) -> Tensor:
        """Return the layer's output, [positions, B, hidden] of the positions that ``attend`` answers."""
        arguments = (hidden_states, turn, attend, dropout_keys, self.dropout_site)
        if self.recompute == "full" and torch.is_grad_enabled():
            return recomputed(self._run, *arguments)
        return self._run(*arguments)

    def _forward(
        self,
        hidden_states: Tensor,
        turn: Rotation,
        attend: AttentionFunction,
        dropout_keys: Tensor | None,
        dropout_site: Tensor,
    ) -> Tensor:
        attended = self.attention(self.attention_norm(hidden_states), attention_mask=(attend, turn))[0]
        hidden_states = self._first(hidden_states, attended) + self._drop(attended, dropout_keys, dropout_site)
        transformed = self.mlp(self.mlp_norm(hidden_states))[0]
        return hidden_states + self._drop(transformed, dropout_keys, dropout_site + 1)

    def _first(self, hidden_states: Tensor, attended: Tensor) -> Tensor:
        """The hidden states of the positions that ``attended`` is of: all, or the first that predict."""
        if hidden_states.shape[0] == attended.shape[0]:
            return hidden_states
        if not self.sequence_parallel:
            return hidden_states[: attended.shape[0]]
        # The predicting positions lie on the first ranks. Each of them will hold its part of the gradient, so the
        # backward pass of the gathering is a mere split.
        group = self.tensor_group
        whole = gather_from_sequence_parallel_region(hidden_states, tensor_parallel_output_grad=False, group=group)
        return scatter_to_sequence_parallel_region(whole[: attended.shape[0] * self.tensor_size], group=group)

    def _drop(self, states: Tensor, keys: Tensor | None, site: Tensor) -> Tensor:
        first_position = self.tensor_rank * states.shape[0] if self.sequence_parallel else 0
        return dropout(states, keys, self.dropout, site=site, first_position=first_position)
