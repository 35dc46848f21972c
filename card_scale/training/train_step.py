"""One update of the model: corrupt, run the pipeline forward and backward, step."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from card_scale.config import Config
from card_scale.data.samples import Samples
from card_scale.distributed import process_groups
from card_scale.distributed.device import current_device
from card_scale.engine import schedule
from card_scale.engine.base import ShardingEngine
from card_scale.errors import NumericError
from card_scale.objectives.base import Objective
from card_scale.objectives.batch import Batch, weighted_loss
from card_scale.objectives.noise import Stream, uniforms
from card_scale.training.metric_sums import LOSS, MetricSums


class StepResult(NamedTuple):
    """What an update leaves, still on the device."""

    local_sums: Tensor
    """This rank's named sums, see :class:`MetricSums`."""
    gradient_norm: Tensor
    """Global, before clipping."""


class StepReport(NamedTuple):
    """What is recorded of an update, the same on every rank."""

    loss: float
    gradient_norm: float
    metrics: dict[str, float]
    """The objective's, and those of repeated data, by key of ``metrics.jsonl``."""


class TrainStep:
    """Applies the objective to one rank's batches. Collective: all ranks call it for the same step."""

    def __init__(self, engine: ShardingEngine, objective: Objective, config: Config):
        self.engine = engine
        self.objective = objective
        self.config = config
        self.device = current_device()
        self.sums = MetricSums(objective.metrics)

    def __call__(self, samples: Samples, learning_rate: float) -> StepResult:
        """Make one update from this rank's share of the global batch."""
        samples = samples.to(self.device)
        batch = self.objective.corrupt(samples, self.config.run.seed)
        # Weights depend on masks alone, so the global normaliser is known before the forward pass.
        normaliser = self.objective.normaliser(batch)
        dist.all_reduce(normaliser, group=process_groups.data_group())
        batch = batch._replace(dropout_keys=self._dropout_keys(samples))
        micro_batches = batch.micro_batches(self.config.train.micro_batch)
        # The schedule averages over micro-batches and the engine over data-parallel ranks: undo both.
        undo_averages = len(micro_batches) * dist.get_world_size(process_groups.data_group())

        def loss(token_losses: Tensor, micro_batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            share = weighted_loss(token_losses, micro_batch.weights, normaliser.float())
            return share * undo_averages, {"sums": self.sums.of(share, token_losses, micro_batch)}

        self.engine.train()
        reports = schedule.run(self.engine, micro_batches, loss)
        gradient_norm = self.engine.step(learning_rate)
        zero = torch.zeros(len(self.sums.names), dtype=torch.float64, device=self.device)
        return StepResult(sum((report["sums"] for report in reports), start=zero), gradient_norm)

    def learn(self, found: Mapping[str, Any]) -> None:
        """Go on with what an evaluation found for the objective."""
        self.objective = self.objective.with_state(found)
        self.sums = MetricSums(self.objective.metrics)

    def report(self, step: int, result: StepResult) -> StepReport:
        """Return what update ``step`` (counted from 1) came to. Collective, and waits for the device.

        Raises NumericError if its loss or gradient norm is not finite: the weights are then not to be kept.
        """
        sums = self.sums.read(result.local_sums)
        report = StepReport(sums[LOSS], float(result.gradient_norm), self.sums.record(sums))
        for name, value in (("loss", report.loss), ("gradient norm", report.gradient_norm)):
            if not math.isfinite(value):
                raise NumericError(
                    f"step {step}: the {name} is {value}; lower optimizer.lr or look at the data of this step"
                )
        return report

    def check_weights(self, step: int) -> None:
        """Raise NumericError if update ``step`` left weights that are not finite, or far too large. Collective.

        A loss and a gradient tell of the weights before an update; what it has ruined would show in the next one.
        """
        total = self.engine.squared_weight_norm()
        dist.all_reduce(total)
        if not bool(total.isfinite()):
            raise NumericError(
                f"step {step}: its update left weights whose squares sum up to {float(total)}; lower optimizer.lr"
            )

    def _dropout_keys(self, samples: Samples) -> Tensor | None:
        if self.config.model.dropout == 0.0:
            return None
        words = uniforms(self.config.run.seed, samples.sample_ids, samples.epochs, 2, Stream.DROPOUT)
        return (words.double() * 2**24).long()
