"""What a step reports of its losses: named sums over the global batch, and the records made of them."""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from card_scale.distributed import process_groups
from card_scale.objectives.base import Metric
from card_scale.objectives.batch import Batch

LOSS = "loss"
"""The objective's loss, already divided by the global normaliser; the first of the sums."""

_REPETITION = ("scored loss", "scored", "first-seen loss", "first-seen")
"""Cross-entropy and number of the positions that the objective scores, and those of them in a sample's first epoch."""


class MetricSums:
    """The sums of one objective, by name, and how they are made, joined and read."""

    def __init__(self, metrics: Sequence[Metric]):
        self.metrics = tuple(metrics)
        self.names = (LOSS, *_REPETITION, *(part for metric in metrics for part in _parts(metric)))

    def of(self, share: Tensor, token_losses: Tensor, batch: Batch) -> Tensor:
        """Return a micro-batch's sums, float64 [names].

        ``share`` is the micro-batch's part of the loss, ``token_losses`` [B, L] its cross-entropies.
        """
        losses = token_losses.detach()
        scored = batch.weights > 0
        first_seen = scored & (batch.samples.epochs == 0)[:, None]
        values, overs = [losses, losses], [scored, first_seen]
        for metric in self.metrics:
            over = metric.over(batch)
            if batch.samples.valid is not None:
                over = over & batch.samples.valid[:, None]
            values.append(metric.value(batch, losses))
            overs.append(over)
        # All at once: on a GPU each operation is a launch, and a small step waits for them.
        over = torch.stack(overs)
        totals = (torch.stack(values) * over).sum((1, 2), dtype=torch.float64)
        positions = over.sum((1, 2), dtype=torch.float64)
        return torch.cat((share.detach().double()[None], torch.stack((totals, positions), dim=1).flatten()))

    def read(self, local: Tensor) -> dict[str, float]:
        """Return the sums over the global batch by name, on every rank. Collective, and waits for the device."""
        return dict(zip(self.names, global_sums(local).tolist(), strict=True))

    def record(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return the fields of ``metrics.jsonl`` beside the loss; means over no position are left out."""
        first = (sums["first-seen loss"], sums["first-seen"])
        repeated = (sums["scored loss"] - first[0], sums["scored"] - first[1])
        means = {"repetition/loss_first_seen": first, "repetition/loss_repeated": repeated}
        for metric in self.metrics:
            total, positions = _parts(metric)
            means[metric.name] = (sums[total], sums[positions])
        return {name: total / positions for name, (total, positions) in means.items() if positions}


def global_sums(local: Tensor) -> Tensor:
    """Sum a tensor over the last stage's data-parallel ranks and give the result to every rank. Collective.

    Stages other than the last know no losses and pass zeros, so the sum over the pipeline group is the last stage's.
    """
    total = local.clone()
    dist.all_reduce(total, group=process_groups.data_group())
    dist.all_reduce(total, group=process_groups.pipeline_group())
    return total


def _parts(metric: Metric) -> tuple[str, str]:
    return f"{metric.name} total", f"{metric.name} positions"
