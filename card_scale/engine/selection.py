"""The sharding engines by name: what each refuses, and where it is. Imports neither of them until it is asked for."""

import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from card_scale.config import Config
from card_scale.distributed.parallel_dims import ParallelDims
from card_scale.engine.deepspeed import settings as deepspeed_settings
from card_scale.engine.fsdp2 import settings as fsdp2_settings

if TYPE_CHECKING:
    from card_scale.engine.base import ShardingEngine


class EngineKind(NamedTuple):
    """A sharding engine, without importing it."""

    check: Callable[[Config, ParallelDims], None]
    """Raises ConfigurationError for what it cannot do."""
    zero_stage: Callable[[Config], int]
    """What it shards over the data-parallel ranks, as a ZeRO stage: 1 optimizer states, 2 gradients, 3 weights too."""
    offloaded: Callable[[Config], frozenset[str]]
    """Which causes of :class:`card_scale.cost.memory.MemoryByCause` lie in the host's memory."""
    target: str
    """``module:class``."""

    def load(self) -> "type[ShardingEngine]":
        """Import the engine."""
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name)


ENGINES: Mapping[str, EngineKind] = MappingProxyType(
    {
        "deepspeed": EngineKind(
            deepspeed_settings.check,
            deepspeed_settings.zero_stage,
            deepspeed_settings.offloaded,
            "card_scale.engine.deepspeed.engine:DeepSpeedEngine",
        ),
        "fsdp2": EngineKind(
            fsdp2_settings.check,
            fsdp2_settings.zero_stage,
            lambda _config: frozenset(),
            "card_scale.engine.fsdp2.engine:Fsdp2Engine",
        ),
    }
)
"""By the value of ``parallel.engine``."""


def compiles_layers(config: Config, device_type: str) -> bool:
    """Return whether decoder layers are compiled: ``train.compile``, by default where they recompute selectively, and
    on a GPU without tensor parallelism."""
    if config.train.compile is not None:
        return config.train.compile
    return config.parallel.recompute == "selective" or (device_type == "cuda" and config.parallel.tensor == 1)


def engine_kind(config: Config) -> EngineKind:
    """Return the engine that a configuration asks for."""
    return ENGINES[config.parallel.engine]
