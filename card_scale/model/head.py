"""The end of the model: final norm, output projection, and the cross-entropy of each target."""

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from card_scale.distributed.device import current_device
from card_scale.model.cross_entropy import vocabulary_parallel_cross_entropy
from card_scale.model.norm import RMSNorm
from card_scale.model.vocabulary import Vocabulary


class LanguageModelHead(nn.Module):
    """Turns the last layer's output into losses, or logits, over a vocabulary sharded by tensor parallelism."""

    def __init__(self, config: TransformerConfig, vocabulary: Vocabulary, *, has_weight: bool):
        """``has_weight`` is false where the embedding on the same stage is the output matrix."""
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.sequence_parallel, config.layernorm_epsilon)
        self.projection = ColumnParallelLinear(
            config.hidden_size,
            vocabulary.padded,
            config=config,
            init_method=None,
            bias=False,
            gather_output=False,
            skip_weight_param_allocation=not has_weight,
            tp_group=parallel_state.get_tensor_model_parallel_group(),
        )
        shard = vocabulary.padded // parallel_state.get_tensor_model_parallel_world_size()
        self.shard_start = parallel_state.get_tensor_model_parallel_rank() * shard
        ids = torch.arange(self.shard_start, self.shard_start + shard, device=current_device())
        # A plain attribute, not a buffer: it is made whole even where the parameters are made on the meta device.
        self.forbidden = (ids == vocabulary.mask_id) | (ids >= vocabulary.size)

    def forward(self, hidden_states: Tensor, targets: Tensor | None, shared_weight: Tensor | None) -> Tensor:
        """Project and score.

        Args:
            hidden_states: [L, B, hidden], this rank's share of the sequence under sequence parallelism.
            targets: int64 [B, L], or None for logits.
            shared_weight: the embedding where it is the output matrix, else None.

        Returns:
            The cross-entropy of each target, float32 [B, L], or without targets this rank's shard of the logits,
            [L, B, vocabulary / tensor].
        """
        logits, _ = self.projection(self.norm(hidden_states), weight=shared_weight)
        if targets is None:
            return logits
        losses = vocabulary_parallel_cross_entropy(
            logits,
            targets.transpose(0, 1),
            self.shard_start,
            self.forbidden,
            parallel_state.get_tensor_model_parallel_group(),
        )
        return losses.transpose(0, 1)
