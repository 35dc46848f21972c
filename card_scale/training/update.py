"""One update of the model: corrupt, run the pipeline forward and backward, step."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from card_scale.config import Config
from card_scale.data.loader import Batch
from card_scale.distributed import cpu_backend, process_groups
from card_scale.engine import schedule
from card_scale.engine.base import ShardingEngine
from card_scale.objectives import Objective, ObjectiveBatch, Samples, weighted_loss
from card_scale.objectives.noise import Stream, uniforms


class LossSums(NamedTuple):
    """What an update reports of its losses: sums over the positions of the global batch."""

    loss: float
    """The objective's loss: already divided by the global normaliser."""
    unweighted: float
    """Sum of the cross-entropies."""
    masked: float
    """Sum of the cross-entropies at masked inputs: in masked diffusion, of the predicted tokens."""
    clean_context: float
    """Sum of the cross-entropies whose whole context is clean: comparable with AR."""
    clean_positions: float
    masked_positions: float
    positions: float
    first_seen: float
    """Sum of the cross-entropies of what is scored, in samples that are in their first epoch."""
    first_seen_positions: float
    scored: float
    """The same of all samples."""
    scored_positions: float


class Update:
    """Applies the objective to one rank's batches. Collective: all ranks call it for the same step."""

    def __init__(self, engine: ShardingEngine, objective: Objective, config: Config):
        self.engine = engine
        self.objective = objective
        self.config = config
        self.device = cpu_backend.device()

    def __call__(self, batch: Batch, learning_rate: float) -> tuple[Tensor, Tensor]:
        """Make one update from this rank's share of the global batch.

        Returns:
            (local loss sums, global gradient norm), still on the device; :meth:`report` makes numbers of the first.
        """
        samples = self.samples(batch)
        corrupted = self.objective.corrupt(samples, self.config.run.seed)
        # Weights depend on masks alone, so the global normaliser is known before the forward pass.
        normaliser = self.objective.normaliser(corrupted)
        dist.all_reduce(normaliser, group=process_groups.data_group())
        dropout_keys = self._dropout_keys(samples)
        micro_batches = split(corrupted, samples.epochs == 0, dropout_keys, self.config.train.micro_batch)
        # The schedule averages over micro-batches and the engine over data-parallel ranks: undo both.
        undo_averages = len(micro_batches) * dist.get_world_size(process_groups.data_group())

        def loss(token_losses: Tensor, micro_batch: schedule.MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
            part, first_seen = micro_batch.extra
            share = weighted_loss(token_losses, part.weights, normaliser.float())
            return share * undo_averages, {"sums": loss_sums(share, token_losses, part, first_seen)}

        self.engine.train()
        reports = schedule.run(self.engine, micro_batches, loss)
        gradient_norm = self.engine.step(learning_rate)
        zero = torch.zeros(len(LossSums._fields), dtype=torch.float64, device=self.device)
        return sum((report["sums"] for report in reports), start=zero), gradient_norm

    def samples(self, batch: Batch) -> Samples:
        """Return the batch on the device, with what its noise depends on."""
        sample_ids, epochs, tokens, global_positions = (field.to(self.device, non_blocking=True) for field in batch)
        return Samples(tokens, sample_ids, epochs, global_positions, self.config.train.global_batch)

    def report(self, local_sums: Tensor) -> LossSums:
        """Return the sums over the global batch, on every rank. Collective, and waits for the device."""
        return LossSums(*global_sums(local_sums).tolist())

    def _dropout_keys(self, samples: Samples) -> Tensor | None:
        if self.config.model.dropout == 0.0:
            return None
        words = uniforms(self.config.run.seed, samples.sample_ids, samples.epochs, 2, Stream.DROPOUT)
        return (words.double() * 2**24).long()


def split(
    batch: ObjectiveBatch, flags: Tensor, dropout_keys: Tensor | None, micro_batch: int
) -> Sequence[schedule.MicroBatch]:
    """Return the batch's consecutive rows as micro-batches; ``extra`` holds their (ObjectiveBatch, flags).

    ``flags`` [B] say something of each sample that the model need not know.
    """
    micro_batches = []
    for begin in range(0, len(batch.inputs), micro_batch):
        rows = slice(begin, begin + micro_batch)
        part = ObjectiveBatch(
            *(field if name == "positions" else field[rows] for name, field in batch._asdict().items())
        )
        keys = None if dropout_keys is None else dropout_keys[rows]
        micro_batches.append(schedule.MicroBatch(part.inputs, part.positions, part.targets, keys, (part, flags[rows])))
    return micro_batches


def loss_sums(share: Tensor, token_losses: Tensor, batch: ObjectiveBatch, first_seen: Tensor) -> Tensor:
    """Return one micro-batch's :class:`LossSums` as float64 [11]; ``first_seen`` is bool [B]."""
    clean = batch.masked.cumsum(1) == 0
    scored = batch.weights > 0
    losses = token_losses.detach()
    return torch.stack(
        [
            share.detach().double(),
            losses.sum(dtype=torch.float64),
            (losses * batch.masked).sum(dtype=torch.float64),
            (losses * clean).sum(dtype=torch.float64),
            clean.sum().double(),
            batch.masked.sum().double(),
            torch.full_like(share, losses.numel(), dtype=torch.float64).detach(),
            (losses * (scored & first_seen[:, None])).sum(dtype=torch.float64),
            (scored & first_seen[:, None]).sum().double(),
            (losses * scored).sum(dtype=torch.float64),
            scored.sum().double(),
        ]
    )


def global_sums(local: Tensor) -> Tensor:
    """Sum a tensor over the last stage's data-parallel ranks and give the result to every rank. Collective.

    Stages other than the last know no losses and pass zeros, so the sum over the pipeline group is the last stage's.
    """
    total = local.clone()
    dist.all_reduce(total, group=process_groups.data_group())
    dist.all_reduce(total, group=process_groups.pipeline_group())
    return total
