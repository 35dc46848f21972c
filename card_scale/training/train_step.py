"""One update of the model: corrupt, run the pipeline forward and backward, step."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from card_scale import faults
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
from card_scale.training.guard import Guard, Refusals
from card_scale.training.interval_loss import IntervalLoss
from card_scale.training.metric_sums import LOSS, MetricSums


class StepResult(NamedTuple):
    """What an update leaves, still on the device."""

    local_sums: Tensor
    """This rank's named sums, see :class:`MetricSums`."""
    gradient_norm: Tensor
    """Global, before clipping."""


class StepReport(NamedTuple):
    """What is recorded of an update, the same on every rank."""

    step: int
    """Counted from 1."""
    loss: float
    """Not finite where the update was refused for it."""
    gradient_norm: float
    metrics: dict[str, float]
    """The objective's, and those of repeated data, by key of ``metrics.jsonl``."""
    refusals: Refusals
    """Of updates of the run so far; ``applied`` is about this one."""
    interval_loss: float | None
    """Mean over the applied updates since the last log line, this one included; None without any, and of an update that
    is not logged."""

    @property
    def applied(self) -> bool:
        """Whether the update was applied."""
        return self.step not in self.refusals.steps


class TrainStep:
    """Applies the objective to one rank's batches. Collective: all ranks call it for the same step."""

    def __init__(
        self,
        engine: ShardingEngine,
        objective: Objective,
        config: Config,
        state: Mapping[str, Any] = MappingProxyType({}),
    ):
        """``state``: the small state of the checkpoint that the run goes on from."""
        self.engine = engine
        self.objective = objective
        self.config = config
        self.device = current_device()
        self.sums = MetricSums(objective.metrics)
        self.guard = Guard(config.guard, self.device)
        self.guard.resume(state)
        self.interval = IntervalLoss()
        self.interval.resume(state)

    def __call__(self, samples: Samples, learning_rate: float) -> StepResult:
        """Make one update from this rank's share of the global batch, unless the guard refuses it."""
        step = samples.update + 1
        samples = samples.to(self.device)
        batch = self.objective.corrupt(samples, self.config.run.seed)
        if samples.valid is not None:
            batch = batch._replace(weights=batch.weights * samples.valid[:, None])
        # Weights depend on masks alone, so the global normaliser is known before the forward pass.
        normaliser = self.objective.normaliser(batch)
        dist.all_reduce(normaliser, group=process_groups.data_group())
        weight = normaliser
        if samples.valid is not None:
            normaliser = torch.where(normaliser > 0, normaliser, 1.0)  # no row of the global batch may count
        batch = batch._replace(dropout_keys=self._dropout_keys(samples))
        micro_batches = batch.micro_batches(self.config.train.micro_batch)
        # The schedule averages over micro-batches and the engine over data-parallel ranks: undo both.
        undo_averages = len(micro_batches) * dist.get_world_size(process_groups.data_group())

        def loss(token_losses: Tensor, micro_batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            share = faults.spoil("loss", weighted_loss(token_losses, micro_batch.weights, normaliser.float()), step)
            return share * undo_averages, {"sums": self.sums.of(share, token_losses, micro_batch)}

        self.engine.train()
        reports = schedule.run(self.engine, micro_batches, loss)
        zero = torch.zeros(len(self.sums.names), dtype=torch.float64, device=self.device)
        sums = sum((report["sums"] for report in reports), start=zero)
        faults.reach("step.update", step)
        gradient_norm = self.engine.step(learning_rate, lambda norm: self.guard.judge(step, sums[0], norm))
        refused, global_loss = self.guard.newest()
        self.interval.add(global_loss, weight, refused)
        return StepResult(sums, gradient_norm)

    def learn(self, found: Mapping[str, Any]) -> None:
        """Go on with what an evaluation found for the objective."""
        self.objective = self.objective.with_state(found)
        self.sums = MetricSums(self.objective.metrics)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of it. To be asked after a report."""
        return self.guard.state() | self.interval.state()

    def report(self, step: int, result: StepResult, *, is_logged: bool) -> StepReport:
        """Return what update ``step`` (counted from 1) came to; one that is logged ends an interval. Collective, and
        waits for the device.

        Raises NumericError or RollBack where the guard's policy ends the run, or sends it back, for what it has refused
        up to this step.
        """
        refusals = self.guard.check(step)
        sums = self.sums.read(result.local_sums)
        mean = self.interval.take() if is_logged else None
        return StepReport(step, sums[LOSS], float(result.gradient_norm), self.sums.record(sums), refusals, mean)

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
