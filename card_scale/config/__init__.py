"""The run configuration: its schema, how it is read, and what it must satisfy."""

from card_scale.config.load import MEGATRON_ALIASES, load, nearest, read
from card_scale.config.schema import (
    SCHEDULES,
    Config,
    DataConfig,
    GuardConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
    WatchdogConfig,
)

__all__ = [
    "MEGATRON_ALIASES",
    "SCHEDULES",
    "Config",
    "DataConfig",
    "GuardConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "RunConfig",
    "TrainConfig",
    "WatchdogConfig",
    "load",
    "nearest",
    "read",
]
