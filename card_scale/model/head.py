"""The end of the model: final norm, output projection, and the cross-entropy of each target."""

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from card_scale.distributed.device import current_device
from card_scale.model.cross_entropy import selection
from card_scale.model.norm import RMSNorm
from card_scale.model.vocabulary import Vocabulary


class LanguageModelHead(nn.Module):
    """Turns the last layer's output into losses, or logits, over a vocabulary sharded by tensor parallelism."""

    def __init__(self, config: TransformerConfig, vocabulary: Vocabulary, *, has_weight: bool, loss_backend: str):
        """Build the head.

        Args:
            config: Megatron's.
            vocabulary: of the tokenizer.
            has_weight: false where the embedding on the same stage is the output matrix.
            loss_backend: kernel of the loss (``model.loss_backend``).
        """
        super().__init__()
        self.loss = selection.loss_kernel(loss_backend, current_device(), config.pipeline_dtype.itemsize)
        self.gathers = parallel_state.get_tensor_model_parallel_world_size() if config.sequence_parallel else 1
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
        states = self.norm(hidden_states)
        if targets is None:
            return self.projection(states, weight=shared_weight)[0]
        targets = targets.transpose(0, 1)
        elements = targets.numel() * len(self.forbidden)
        if self.loss.most_elements is None or elements <= self.loss.most_elements:
            return self._score(states, targets, shared_weight).transpose(0, 1)
        return self._score_in_parts(states, targets, shared_weight).transpose(0, 1)

    def _score(self, states: Tensor, targets: Tensor, shared_weight: Tensor | None) -> Tensor:
        """Return the cross-entropy of each target, float32 [positions, B]."""
        logits, _ = self.projection(states, weight=shared_weight)
        group = parallel_state.get_tensor_model_parallel_group()
        return self.loss.cross_entropy(logits, targets, self.shard_start, self.forbidden, group)

    def _score_in_parts(self, states: Tensor, targets: Tensor, shared_weight: Tensor | None) -> Tensor:
        """The same, PART_ELEMENTS logits at a time, which are computed again in the backward pass.

        Under sequence parallelism a part is the same rows of every rank's share.
        """
        rows = max(1, selection.PART_ELEMENTS // (self.gathers * targets.shape[1] * len(self.forbidden)))
        by_rank = targets.unflatten(0, (self.gathers, len(states)))
        losses = []
        for begin in range(0, len(states), rows):
            part = by_rank[:, begin : begin + rows]
            scored = checkpoint(
                self._score,
                states[begin : begin + rows],
                part.flatten(0, 1),
                shared_weight,
                use_reentrant=False,
                preserve_rng_state=False,
            )
            losses.append(scored.unflatten(0, part.shape[:2]))
        return torch.cat(losses, dim=1).flatten(0, 1)
