"""The decoder of every objective, built stage by stage from Megatron-core's tensor-parallel layers."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.enums import ModelType
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, VocabParallelEmbedding
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from card_scale.config import Config
from card_scale.distributed import cpu_backend
from card_scale.errors import ConfigurationError
from card_scale.model.attention import create_attention
from card_scale.model.cross_entropy import vocabulary_parallel_cross_entropy
from card_scale.model.dropout import dropout
from card_scale.model.layer import DecoderLayer
from card_scale.model.norm import RMSNorm
from card_scale.objectives.base import AttentionKind

VOCABULARY_MULTIPLE = 64
"""The vocabulary is padded to a multiple of this, whatever the layout, so that any layout loads any checkpoint."""

ROTARY_BASE = 10_000.0


def padded_vocabulary(vocabulary: int) -> int:
    """Return the number of rows of the embedding for a tokenizer of ``vocabulary`` pieces."""
    return -(-vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def transformer_config(config: Config) -> TransformerConfig:
    """Return Megatron-core's configuration of the run's layers and schedule."""
    model, parallel = config.model, config.parallel
    compute_dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    return TransformerConfig(
        num_layers=model.layers,
        hidden_size=model.hidden,
        num_attention_heads=model.heads,
        ffn_hidden_size=model.ffn,
        hidden_dropout=model.dropout,
        attention_dropout=0.0,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        normalization="RMSNorm",
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None,
        sequence_parallel=parallel.sequence,
        pipeline_dtype=compute_dtype,
        bf16=compute_dtype == torch.bfloat16,
        # The batched point-to-point path of the interleaved schedule is silently wrong at two stages
        # (megatron-core 0.16.1); the overlapped one is right.
        overlap_p2p_comm=parallel.virtual_pipeline > 1,
        batch_p2p_comm=parallel.virtual_pipeline == 1,
        # Weights are set by model/initialization.py, the same in every layout.
        use_cpu_initialization=True,
        perform_initialization=False,
        # The engines hook the outputs' autograd graph, which deallocation would cut.
        deallocate_pipeline_outputs=False,
        bias_dropout_fusion=False,
        bias_activation_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
    )


@dataclass(frozen=True)
class Vocabulary:
    """Sizes and ids of the tokenizer that the model must know."""

    size: int
    mask_id: int

    @property
    def padded(self) -> int:
        return padded_vocabulary(self.size)


class GPT(nn.Module):
    """One model chunk: consecutive layers, with the embedding on the first chunk and the head on the last.

    Activations are [M, B, hidden] for M inputs, sharded along M between tensor-parallel regions under sequence
    parallelism. Layers are keyed by their number in the whole model, so parameter names are the same in every layout.
    ``attention`` says which positions see which; no weight depends on it.
    """

    def __init__(self, config: Config, vocabulary: Vocabulary, attention_kind: AttentionKind, chunk: int = 0):
        """Build the chunk-th model chunk of this rank's pipeline stage (0 without interleaving)."""
        super().__init__()
        self.attention = create_attention(attention_kind, config.model.attention_backend, cpu_backend.device())
        self.config = transformer_config(config)
        self.model_type = ModelType.encoder_or_decoder
        self.vocabulary = vocabulary
        stages, stage = config.parallel.pipeline, parallel_state.get_pipeline_model_parallel_rank()
        chunks = stages * config.parallel.virtual_pipeline
        position = chunk * stages + stage
        self.is_first, self.is_last = position == 0, position == chunks - 1
        self.tied = config.model.tie_embeddings
        self.tensor_rank = parallel_state.get_tensor_model_parallel_rank()
        group = parallel_state.get_tensor_model_parallel_group()
        if vocabulary.padded % config.parallel.tensor:
            raise ConfigurationError(
                f"the padded vocabulary {vocabulary.padded} is not divisible by parallel.tensor "
                f"{config.parallel.tensor}; valid: divisors of {VOCABULARY_MULTIPLE}"
            )
        if self.is_first:
            self.embedding = VocabParallelEmbedding(
                vocabulary.padded,
                config.model.hidden,
                init_method=None,
                reduce_scatter_embeddings=config.parallel.sequence,
                config=self.config,
                tp_group=group,
            )
        per_chunk = config.model.layers // chunks
        recompute = config.parallel.recompute == "full"
        self.layers = nn.ModuleDict(
            {
                str(index): DecoderLayer(self.config, index, recompute)
                for index in range(position * per_chunk, (position + 1) * per_chunk)
            }
        )
        if config.train.compile:
            for layer in self.layers.values():
                layer.compile_forward()
        if self.is_last:
            self.final_norm = RMSNorm(config.model.hidden, config.parallel.sequence)
            self.head = ColumnParallelLinear(
                config.model.hidden,
                vocabulary.padded,
                config=self.config,
                init_method=None,
                bias=False,
                gather_output=False,
                skip_weight_param_allocation=self.tied and self.is_first,
                tp_group=group,
            )
            shard = vocabulary.padded // config.parallel.tensor
            self.shard_start = self.tensor_rank * shard
            ids = torch.arange(self.shard_start, self.shard_start + shard)
            self.register_buffer("forbidden", (ids == vocabulary.mask_id) | (ids >= vocabulary.size), persistent=False)
        head_size = config.model.hidden // config.model.heads
        exponents = torch.arange(0, head_size, 2, dtype=torch.float32) / head_size
        self.register_buffer("rotary_frequencies", 1.0 / ROTARY_BASE**exponents, persistent=False)
        self.stage_input: Tensor | None = None

    def set_input_tensor(self, tensor) -> None:
        """Take the previous stage's output (Megatron's schedule calls this before ``forward``)."""
        self.stage_input = tensor[0] if isinstance(tensor, list) else tensor

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        targets: Tensor | None = None,
        dropout_keys: Tensor | None = None,
    ) -> Tensor:
        """Run the chunk.

        Args:
            input_ids: int64 [B, M]; M is 2L for block diffusion, else L.
            positions: int64 [M], rotary position of each input.
            targets: int64 [B, L], or None for logits.
            dropout_keys: int64 [B, 2] (see ``model.dropout``), or None for no dropout.

        Returns:
            On the last chunk the cross-entropy of each target, float32 [B, L], or without targets this rank's shard of
            the logits, [L, B, vocabulary / tensor]; on other chunks the activations for the next stage.
        """
        if self.is_first:
            hidden_states = self.embedding(input_ids)
            if not self.config.sequence_parallel:
                hidden_states = hidden_states.transpose(0, 1).contiguous()
            first_position = self.tensor_rank * len(hidden_states) if self.config.sequence_parallel else 0
            hidden_states = dropout(
                hidden_states, dropout_keys, self.config.hidden_dropout, site=0, first_position=first_position
            )
        else:
            hidden_states = self.stage_input
        angles = torch.outer(positions.float(), self.rotary_frequencies)
        rotary = torch.cat((angles, angles), dim=-1)[:, None, None, :]
        self.attention.prepare(len(positions), positions.device)
        for layer in self.layers.values():
            hidden_states = layer(hidden_states, rotary, self.attention, dropout_keys)
        if not self.is_last:
            return hidden_states
        shared = self.embedding.weight if self.tied and self.is_first else None
        logits, _ = self.head(self.final_norm(hidden_states), weight=shared)
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
