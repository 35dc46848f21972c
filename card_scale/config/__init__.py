"""The run configuration: its schema, how it is read, and what it must satisfy."""

from card_scale.config.load import load, read, stated_run_dir
from card_scale.config.overrides import MEGATRON_ALIASES, nearest, parse_overrides
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
    "parse_overrides",
    "read",
    "stated_run_dir",
]
