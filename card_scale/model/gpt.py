"""The decoder of every objective, built stage by stage from Megatron-core's tensor-parallel layers."""

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.enums import ModelType
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region, scatter_to_sequence_parallel_region
from megatron.core.tensor_parallel.layers import VocabParallelEmbedding
from torch import Tensor, nn

from card_scale.config import ModelConfig
from card_scale.distributed.device import current_device
from card_scale.distributed.parallel_dims import ParallelDims
from card_scale.model.attention.by_layer import LayerAttention
from card_scale.model.dropout import dropout
from card_scale.model.head import LanguageModelHead
from card_scale.model.layer import DecoderLayer
from card_scale.model.query_stream import query_stream
from card_scale.model.recomputation import Recompute
from card_scale.model.rotary import rotation
from card_scale.model.transformer_config import transformer_config
from card_scale.model.vocabulary import Vocabulary
from card_scale.objectives.attention import AttentionKind, StrictBlockCausal


class GPT(nn.Module):
    """One model chunk: consecutive layers, with the embedding on the first chunk and the head on the last.

    Activations are [M, B, hidden] for M inputs, sharded along M between tensor-parallel regions under sequence
    parallelism. Layers are keyed by their number in the whole model, so parameter names are the same in every layout.
    ``attention_kind`` says which positions see which; no weight depends on it.
    """

    def __init__(
        self,
        model: ModelConfig,
        vocabulary: Vocabulary,
        attention_kind: AttentionKind,
        dims: ParallelDims,
        *,
        chunk: int = 0,
        compute_dtype: torch.dtype = torch.float32,
        recompute: Recompute = "none",
        compile_layers: bool = False,
    ):
        """Build a model chunk of this rank's pipeline stage; the process groups of ``dims`` must have formed.

        Args:
            model: its sizes.
            vocabulary: of the tokenizer.
            attention_kind: which positions see which.
            dims: the layout, of which this rank holds its share.
            chunk: number of the chunk on this stage, 0 without interleaving.
            compute_dtype: of the activations between stages.
            recompute: what of each layer's activations, in the backward pass; "selective" in compiled layers alone.
            compile_layers: each as one graph.
        """
        super().__init__()
        vocabulary.check_divisible(dims.tensor)
        self.attention = LayerAttention(attention_kind, model.layers, model.attention_backend, current_device())
        self.config = transformer_config(model, dims, compute_dtype)
        self.model_type = ModelType.encoder_or_decoder
        self.vocabulary = vocabulary
        position = chunk * dims.pipeline + parallel_state.get_pipeline_model_parallel_rank()
        self.is_first, self.is_last = position == 0, position == dims.chunks - 1
        self.tied = model.tie_embeddings
        self.tensor_rank = parallel_state.get_tensor_model_parallel_rank()
        if self.is_first:
            self.embedding = VocabParallelEmbedding(
                vocabulary.padded,
                model.hidden,
                init_method=None,
                reduce_scatter_embeddings=dims.sequence,
                config=self.config,
                tp_group=parallel_state.get_tensor_model_parallel_group(),
            )
        per_chunk = model.layers // dims.chunks
        indices = range(position * per_chunk, (position + 1) * per_chunk)
        self.layers = nn.ModuleDict({str(index): DecoderLayer(self.config, index, recompute) for index in indices})
        for layer in self.layers.values() if compile_layers else ():
            layer.compile_forward()
        if self.is_last:
            has_weight = not (self.tied and self.is_first)
            self.head = LanguageModelHead(
                self.config, vocabulary, has_weight=has_weight, loss_backend=model.loss_backend
            )
        exponents = torch.arange(0, model.head_size, 2, dtype=torch.float32, device=current_device()) / model.head_size
        # A plain attribute, not a buffer: it is made whole even where the parameters are made on the meta device.
        self.rotary_frequencies = 1.0 / model.rotary_base**exponents
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
        attention_kind: AttentionKind | None = None,
    ) -> Tensor:
        """Run the chunk.

        Args:
            input_ids: int64 [B, M], or [B, L] where the first L of M = 2L positions are a query stream; M is L times
                the attention kind's ``inputs_per_token``.
            positions: int64 [B, M], rotary positions.
            targets: int64 [B, L], or None for logits.
            dropout_keys: int64 [B, 2] (see ``model.dropout``), or None for no dropout.
            attention_kind: of this pass, where it is not the one that the model was built for.

        Returns:
            On the last chunk what the head returns, the cross-entropy of each target, float32 [B, L], or without
            targets this rank's shard of the logits; on other chunks the activations for the next stage.
        """
        attention = self.attention.of_kind(attention_kind)
        attention.prepare(positions.shape[1], positions.device)
        angles = self._rotary_angles(positions)
        hidden_states = (
            self._embed(input_ids, angles, attention.kind, dropout_keys) if self.is_first else self.stage_input
        )
        rows, turn = len(hidden_states), rotation(angles, hidden_states.dtype)
        for layer in self.layers.values():
            if not attention.is_wide(layer.index):
                hidden_states = hidden_states[: attention.kind.predictions(rows)]
                cosines, sines = (part[: attention.kind.predictions(positions.shape[1])] for part in turn)
                turn = cosines, sines
            hidden_states = layer(hidden_states, turn, attention.of(layer.index), dropout_keys)
        if not self.is_last:
            # Every stage expects all positions of the one before.
            missing = rows - len(hidden_states)
            return F.pad(hidden_states, (0, 0, 0, 0, 0, missing)) if missing else hidden_states
        shared = self.embedding.weight if self.tied and self.is_first else None
        return self.head(hidden_states, targets, shared)

    def _embed(self, input_ids: Tensor, angles: Tensor, kind: AttentionKind, dropout_keys: Tensor | None) -> Tensor:
        """Return the states of all positions, [M, B, hidden], this rank's share under sequence parallelism."""
        hidden_states = self.embedding(input_ids)
        if not self.config.sequence_parallel:
            hidden_states = hidden_states.transpose(0, 1).contiguous()
        if kind.has_query_stream:
            hidden_states = self._beside_queries(hidden_states, angles, kind)
        first_position = self.tensor_rank * len(hidden_states) if self.config.sequence_parallel else 0
        return dropout(hidden_states, dropout_keys, self.config.hidden_dropout, site=0, first_position=first_position)

    def _beside_queries(self, tokens: Tensor, angles: Tensor, kind: StrictBlockCausal) -> Tensor:
        """Return the query stream before the embedded tokens."""
        if not self.config.sequence_parallel:
            return torch.cat((query_stream(tokens, angles, kind, self.config.layernorm_epsilon), tokens))
        # Each rank computes all of it and keeps its share, so it knows the whole gradient of the whole: the backward
        # pass of the gathering is a mere split.
        whole = gather_from_sequence_parallel_region(tokens, tensor_parallel_output_grad=False)
        queries = query_stream(whole, angles, kind, self.config.layernorm_epsilon)
        return scatter_to_sequence_parallel_region(torch.cat((queries, whole)))

    def _rotary_angles(self, positions: Tensor) -> Tensor:
        """Return float32 [M, B, head size / 2], or [M, 1, head size / 2] where all samples share one row (stride 0)."""
        rows = positions[:1] if positions.stride(0) == 0 else positions
        return rows.t().float().unsqueeze(-1) * self.rotary_frequencies
