"""Builds this rank's model chunks and puts them under the configured sharding engine."""

from collections.abc import Callable

import torch
from torch import Tensor

from card_scale.config import Config
from card_scale.distributed.device import current_device
from card_scale.distributed.parallel_dims import ParallelDims
from card_scale.engine.base import ShardingEngine
from card_scale.engine.selection import compiles_layers, engine_kind
from card_scale.engine.state_keys import WEIGHT
from card_scale.model.gpt import GPT
from card_scale.model.initialization import initial_weight
from card_scale.model.vocabulary import Vocabulary
from card_scale.objectives.attention import AttentionKind


def compute_dtype(config: Config) -> torch.dtype:
    """Return the type of a run's activations."""
    return torch.bfloat16 if config.train.precision == "bf16" else torch.float32


def build_engine(
    config: Config,
    dims: ParallelDims,
    vocabulary: Vocabulary,
    attention_kind: AttentionKind,
    initial: Callable[[str, tuple[int, ...], int, int], Tensor] = initial_weight,
) -> ShardingEngine:
    """Return the engine with weights at their ``initial`` values. The process groups of ``dims`` must have formed.

    The chunks are made on the meta device: the engine gives memory to this rank's shard alone, and initial values are
    set one parameter at a time.

    Raises ValueError for an objective that was not told the vocabulary's [MASK].
    """
    if config.objective.mask_id != vocabulary.mask_id:
        raise ValueError(
            f"the objective masks with id {config.objective.mask_id}, the vocabulary has {vocabulary.mask_id}"
        )
    dtype = compute_dtype(config)
    with torch.device("meta"):
        chunks = [
            GPT(
                config.model,
                vocabulary,
                attention_kind,
                dims,
                chunk=chunk,
                compute_dtype=dtype,
                recompute=config.parallel.recompute,
                compile_layers=compiles_layers(config, current_device().type),
            )
            for chunk in range(dims.virtual_pipeline)
        ]
    engine = engine_kind(config).load()(chunks, config, dtype)
    for parameter, logical in engine.weights():
        whole = initial(logical.name, logical.global_shape, config.run.seed, config.model.layers)
        engine.set_full_state(parameter, WEIGHT, logical.select(whole))
    engine.publish_weights()
    return engine
