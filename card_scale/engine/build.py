"""Builds this rank's model chunks and puts them under the configured sharding engine."""

from card_scale.config import Config
from card_scale.engine.base import WEIGHT, ShardingEngine
from card_scale.model.gpt import GPT, Vocabulary
from card_scale.model.initialization import initial_weight
from card_scale.objectives.base import AttentionKind


def build_engine(config: Config, vocabulary: Vocabulary, attention_kind: AttentionKind) -> ShardingEngine:
    """Return the engine with weights at their initial values. The process groups must have formed."""
    chunks = [GPT(config, vocabulary, attention_kind, chunk) for chunk in range(config.parallel.virtual_pipeline)]
    if config.parallel.engine == "fsdp2":
        from card_scale.engine.fsdp2 import Fsdp2Engine

        engine: ShardingEngine = Fsdp2Engine(chunks, config)
    else:
        from card_scale.engine.deepspeed.engine import DeepSpeedEngine

        engine = DeepSpeedEngine(chunks, config)
    for parameter, where in engine.weights():
        whole = initial_weight(where.name, where.global_shape, config.run.seed, config.model.layers)
        engine.set_full_state(parameter, WEIGHT, where.select(whole))
    engine.publish_masters()
    return engine
