"""Who holds which piece: the degrees of parallelism, and whether they fit the world and the model.

Pure arithmetic: an impossible layout is refused here, before any process group forms.
"""

from dataclasses import dataclass

from card_scale.config import Config
from card_scale.errors import ConfigurationError


@dataclass(frozen=True)
class ParallelDims:
    """Degrees of parallelism. ``tensor * pipeline * data`` is the world size."""

    tensor: int
    pipeline: int
    data: int
    virtual_pipeline: int = 1
    sequence: bool = False

    @property
    def world_size(self) -> int:
        return self.tensor * self.pipeline * self.data

    @property
    def chunks(self) -> int:
        """Model chunks of the whole pipeline: consecutive layers that run as one."""
        return self.pipeline * self.virtual_pipeline

    def describe(self) -> str:
        """Return the layout in words, for logs and file headers."""
        parts = [f"tensor {self.tensor}", f"pipeline {self.pipeline}", f"data {self.data}"]
        if self.virtual_pipeline > 1:
            parts.append(f"{self.virtual_pipeline} chunks per stage")
        if self.sequence:
            parts.append("sequence parallel")
        return " x ".join(parts[:3]) + "".join(f", {part}" for part in parts[3:])


def plan(config: Config, world_size: int) -> ParallelDims:
    """Return the layout of a configuration on ``world_size`` ranks.

    Raises ConfigurationError, naming the numbers, where the layout does not fit the world or the batch.
    """
    parallel, train = config.parallel, config.train
    model_parallel = parallel.tensor * parallel.pipeline
    if world_size % model_parallel:
        raise ConfigurationError(
            f"{world_size} ranks cannot hold parallel.tensor {parallel.tensor} x parallel.pipeline "
            f"{parallel.pipeline}; start a multiple of {model_parallel} ranks"
        )
    data = world_size // model_parallel
    if train.global_batch % (train.micro_batch * data):
        raise ConfigurationError(
            f"train.global_batch {train.global_batch} is not divisible by train.micro_batch {train.micro_batch} x "
            f"{data} data-parallel ranks ({world_size} ranks / tensor {parallel.tensor} / pipeline "
            f"{parallel.pipeline}); nearest valid: {_nearest_multiple(train.global_batch, train.micro_batch * data)}"
        )
    micro_batches = train.global_batch // (train.micro_batch * data)
    if parallel.virtual_pipeline > 1 and micro_batches % parallel.pipeline:
        raise ConfigurationError(
            f"parallel.virtual_pipeline {parallel.virtual_pipeline} needs the micro-batches per step "
            f"({micro_batches}) to be a multiple of parallel.pipeline {parallel.pipeline}"
        )
    return ParallelDims(parallel.tensor, parallel.pipeline, data, parallel.virtual_pipeline, parallel.sequence)


def _nearest_multiple(value: int, step: int) -> int:
    return max(1, round(value / step)) * step
