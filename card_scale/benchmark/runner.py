"""One arm's training step, ready to be timed beside others on the same engine."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from card_scale.benchmark.arms import Arm, config_of
from card_scale.benchmark.clock import Clock, Partition
from card_scale.benchmark.instruments import parts, phases
from card_scale.config import Config
from card_scale.data.samples import Samples
from card_scale.data.tokenizer import MASK_ID
from card_scale.distributed import process_groups
from card_scale.distributed.device import current_device
from card_scale.engine.base import ShardingEngine
from card_scale.engine.selection import compiles_layers
from card_scale.model.attention.by_layer import LayerAttention
from card_scale.training.train_step import TrainStep

LATE_UPDATE = 10**9
"""Steps are those of the end of a training: a schedule of the objective's has gone through."""


class ArmRunner:
    """Runs steps of an arm on an engine that it shares with the others: same weights, same optimizer."""

    def __init__(self, engine: ShardingEngine, arm: Arm, base: Config):
        """``base`` gives length and batch; the engine may have been built for others."""
        self.engine, self.arm, self.config = engine, arm, config_of(arm, base)
        self.train_step = TrainStep(engine, self.config.objective, self.config)
        device = self.train_step.device
        # One object per chunk, as the model builds it.
        kind = self.config.objective.attention
        layers = self.config.model.layers
        self.attentions = [LayerAttention(kind, layers, arm.backend, device) for _ in engine.chunks]
        self.backend = self.attentions[0].wide.backend
        self.sums: list[Tensor] = []
        """Loss sums of the steps made, still on the device."""

    def install(self) -> None:
        """Make the engine's chunks attend as this arm does. Needed once before its steps, after another arm's."""
        for chunk, attention in zip(self.engine.chunks, self.attentions, strict=True):
            chunk.attention = attention

    def step(self, samples: Samples) -> None:
        """Make one update."""
        self.sums.append(self.train_step(samples, self.config.optimizer.lr).local_sums)

    def timed_step(self, samples: Samples, clock: Clock) -> Partition:
        """Make one update; return its phases, once the device is waited for."""
        partition = Partition(clock, "prepare")
        with phases(self.engine, partition):
            self.step(samples)
        partition.end()
        return partition

    def dissected_step(self, samples: Samples, clock: Clock) -> Partition:
        """Make one update with stamps inside the model; return its parts, once the device is waited for."""
        partition = Partition(clock, "rest")
        with parts(self.engine, partition, inside_layers=not compiles_layers(self.config, current_device().type)):
            self.step(samples)
        partition.end()
        return partition

    def supervised_share(self) -> float:
        """Return the share of clean tokens that the objective predicted, over the steps made. Collective."""
        sums = self.train_step.sums.read(torch.stack(self.sums).sum(0))
        seen = len(self.sums) * self.config.train.global_batch * self.config.model.length
        return sums["scored"] / seen


def random_batches(config: Config, vocabulary: int) -> Callable[[int], Samples]:
    """Return step number -> this rank's share of a global batch of random tokens, the same for every arm."""
    ranks = dist.get_world_size(process_groups.data_group())
    rows = config.train.global_batch // ranks

    def batch(step: int) -> Samples:
        first = (step * ranks + process_groups.data_rank()) * rows
        generator = torch.Generator().manual_seed(first)
        tokens = torch.randint(MASK_ID + 1, vocabulary, (rows, config.model.length + 1), generator=generator)
        places = torch.arange(first, first + rows)
        samples = Samples(
            tokens, places, torch.zeros_like(places), places, config.train.global_batch, update=LATE_UPDATE + step
        )
        return samples.pinned() if current_device().type == "cuda" else samples

    return batch
