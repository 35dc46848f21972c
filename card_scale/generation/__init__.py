"""Generation from trained models: plain torch, no process groups, no engine."""

from card_scale.generation.load import TrainedModel, load
from card_scale.generation.loop import Generation, generate

__all__ = ["Generation", "TrainedModel", "generate", "load"]
