"""The largest model that trains on one GPU: layers of a configuration's widths, by the estimate and by trying."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from card_scale.benchmark.arms import Arm, with_sizes
from card_scale.benchmark.peak_memory import PeakMemory
from card_scale.benchmark.runner import ArmRunner, random_batches
from card_scale.config import Config
from card_scale.cost.parameters import parameter_counts
from card_scale.data.tokenizer import MASK_ID
from card_scale.distributed import parallel_dims, process_groups
from card_scale.distributed.device import current_device
from card_scale.engine.build import build_engine
from card_scale.model.vocabulary import Vocabulary
from card_scale.training.memory_fit import Memory, needed_bytes

STEPS_BEFORE = 2
"""The first one compiles and makes the optimizer's states."""


class Sizes(NamedTuple):
    """A model with so many layers."""

    layers: int
    parameters: int
    estimated_gib: float
    """That a step takes."""

    @classmethod
    def of(cls, config: Config, vocabulary_rows: int, memory: Memory) -> "Sizes":
        """Of a configuration on one rank."""
        parameters = parameter_counts(config.model, vocabulary_rows).total
        estimated = needed_bytes(config, 1, vocabulary_rows, memory) / 2**30
        return cls(config.model.layers, parameters, estimated)


def with_layers(config: Config, layers: int) -> Config:
    """Return ``config`` with so many layers."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, layers=layers))


def most_by_estimate(config: Config, vocabulary_rows: int, memory: Memory) -> int:
    """Return the most layers whose estimate fits into ``memory``; 0 if not one does."""

    def fits(layers: int) -> bool:
        return needed_bytes(with_layers(config, layers), 1, vocabulary_rows, memory) <= memory.bytes

    return last_that(fits)


def last_that(fits: Callable[[int], bool], first: int = 1) -> int:
    """Return the largest number that fits, 0 if not even 1 does; asked are few, from ``first`` on.

    What fits fits with less too.
    """
    low, high, asked, step = 0, None, max(1, first), max(1, first // 16)
    while high is None or high - low > 1:
        if fits(asked):
            low = asked
        else:
            high = asked
        if high is not None and low:
            asked = (low + high) // 2
        else:
            asked = low + step if high is None else max(1, high - step)
            step *= 2
    return low


def step_peak_gib(config: Config, vocabulary: int) -> float:
    """Train for some steps of two micro-batches on random tokens, on this rank alone; return the memory that the last
    one took at its peak.

    Raises torch.OutOfMemoryError, and ConfigurationError for a layout of more ranks.
    """
    dims, micro_batch = parallel_dims.plan(config, 1), config.train.micro_batch
    config = with_sizes(config, length=config.model.length, micro_batch=micro_batch, global_batch=2 * micro_batch)
    process_groups.initialize(dims, config.run.timeout_seconds)
    engine = build_engine(config, dims, Vocabulary(vocabulary, MASK_ID), config.objective.attention, _zeros)
    runner = ArmRunner(engine, Arm(config.objective.name, config.model.attention_backend), config)
    runner.install()
    batches = random_batches(config, vocabulary)
    for number in range(STEPS_BEFORE):
        runner.step(batches(number))
    with PeakMemory(current_device(), engine.chunks) as peak:
        runner.step(batches(STEPS_BEFORE))
    process_groups.destroy()
    return peak.bytes / 2**30


def _zeros(_name: str, shape: tuple[int, ...], _seed: int, _layers: int) -> Tensor:
    """Weights that take no time: to draw billions of them takes a minute."""
    return torch.zeros(()).expand(shape)
