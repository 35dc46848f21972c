"""One decoder layer: Megatron-core's attention and gated MLP between our norms, with residuals.

Pre-norm, rotary positions, SwiGLU, no biases: the Llama shape (design decision 4).
"""

import torch
import torch.utils.checkpoint
from megatron.core import parallel_state
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from card_scale.model.attention import CoreAttention
from card_scale.model.dropout import dropout
from card_scale.model.norm import RMSNorm


def attention_spec(kind: str) -> ModuleSpec:
    """Return the spec of self-attention with the objective's kind of visibility."""
    return ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": AttnMaskType.no_mask},
        submodules=SelfAttentionSubmodules(
            linear_qkv=ColumnParallelLinear,
            core_attention=lambda **arguments: CoreAttention(kind=kind, **arguments),
            linear_proj=RowParallelLinear,
        ),
    )


def feed_forward_spec() -> ModuleSpec:
    """Return the spec of the gated feed-forward network."""
    return ModuleSpec(
        module=MLP, submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    )


class DecoderLayer(nn.Module):
    """hidden += attention(norm(hidden)); hidden += mlp(norm(hidden))."""

    def __init__(self, config: TransformerConfig, index: int, attention_kind: str, recompute: bool):
        """Build layer ``index`` (0-based, over the whole model)."""
        super().__init__()
        self.index = index
        self.dropout = config.hidden_dropout
        self.recompute = recompute
        self.attention_norm = RMSNorm(config.hidden_size, config.sequence_parallel)
        self.attention = build_module(attention_spec(attention_kind), config=config, layer_number=index + 1)
        self.mlp_norm = RMSNorm(config.hidden_size, config.sequence_parallel)
        self.mlp = build_module(
            feed_forward_spec(),
            config=config,
            ffn_hidden_size=config.ffn_hidden_size,
            tp_group=parallel_state.get_tensor_model_parallel_group(),
        )

    def forward(
        self, hidden_states: Tensor, rotary: Tensor, dropout_keys: Tensor | None, first_position: int
    ) -> Tensor:
        """Return the layer's output, [positions, B, hidden] like its input."""
        if self.recompute and torch.is_grad_enabled():
            # Nothing in a layer draws from a generator, so there is no random state to restore.
            return torch.utils.checkpoint.checkpoint(
                self._forward,
                hidden_states,
                rotary,
                dropout_keys,
                first_position,
                use_reentrant=False,
                preserve_rng_state=False,
            )
        return self._forward(hidden_states, rotary, dropout_keys, first_position)

    def _forward(
        self, hidden_states: Tensor, rotary: Tensor, dropout_keys: Tensor | None, first_position: int
    ) -> Tensor:
        for branch, place in ((self._attend, 1), (self._transform, 2)):
            added = dropout(
                branch(hidden_states, rotary),
                dropout_keys,
                self.dropout,
                site=2 * self.index + place,
                first_position=first_position,
            )
            hidden_states = hidden_states + added
        return hidden_states

    def _attend(self, hidden_states: Tensor, rotary: Tensor) -> Tensor:
        return self.attention(self.attention_norm(hidden_states), attention_mask=None, rotary_pos_emb=rotary)[0]

    def _transform(self, hidden_states: Tensor, rotary: Tensor) -> Tensor:  # noqa: ARG002 - same shape as _attend
        return self.mlp(self.mlp_norm(hidden_states))[0]
