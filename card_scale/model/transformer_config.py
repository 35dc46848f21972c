"""Megatron-core's configuration of the layers and of the schedule that runs them."""

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig

from card_scale.config import ModelConfig
from card_scale.distributed.parallel_dims import ParallelDims


def transformer_config(model: ModelConfig, dims: ParallelDims, compute_dtype: torch.dtype) -> TransformerConfig:
    """Return Megatron-core's configuration of a model in a layout."""
    return TransformerConfig(
        num_layers=model.layers,
        hidden_size=model.hidden,
        num_attention_heads=model.heads,
        num_query_groups=model.key_value_heads,
        ffn_hidden_size=model.ffn,
        hidden_dropout=model.dropout,
        attention_dropout=0.0,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        normalization="RMSNorm",
        layernorm_epsilon=model.norm_epsilon,
        tensor_model_parallel_size=dims.tensor,
        pipeline_model_parallel_size=dims.pipeline,
        virtual_pipeline_model_parallel_size=dims.virtual_pipeline if dims.virtual_pipeline > 1 else None,
        sequence_parallel=dims.sequence,
        pipeline_dtype=compute_dtype,
        bf16=compute_dtype == torch.bfloat16,
        # The batched point-to-point path of the interleaved schedule is silently wrong at two stages
        # (megatron-core 0.16.1); the overlapped one is right.
        overlap_p2p_comm=dims.virtual_pipeline > 1,
        batch_p2p_comm=dims.virtual_pipeline == 1,
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
