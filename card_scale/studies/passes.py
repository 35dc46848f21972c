"""The training loss of each pass over the data, from the log lines of a run."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from card_scale.studies.spec import RunSpec


class PassLoss(NamedTuple):
    """What the log lines say of one pass."""

    loss: float
    """Mean over the samples of the logged batches, nats per scored token."""
    lines: int
    """Log lines that it is the mean of."""
    covered: float
    """Share of the pass's samples that stood in the logged batches."""


def losses_of_passes(spec: RunSpec, records: Sequence[dict[str, Any]]) -> dict[int, PassLoss]:
    """Return {pass over the data, from 1: its loss}; a pass that no log line fell into is missing.

    The loss is the unweighted cross-entropy of the positions that the objective scores, under its corruption, each
    line weighed by the samples of the pass in its batch. A batch that holds the end of one pass and the start of the
    next counts for the pass that its middle lies in; only first-seen samples are always told apart from repeated ones.
    """
    batch, samples = spec.config.train.global_batch, spec.samples_per_epoch
    found: dict[int, list[tuple[float, float]]] = {}
    for record in records:
        end = record.get("samples", 0) + record.get("guard/passed_over_batches", 0) * batch
        unseen = min(max(samples - (end - batch), 0), batch)
        first, repeated = record.get("repetition/loss_first_seen"), record.get("repetition/loss_repeated")
        if first is not None:
            found.setdefault(1, []).append((first, unseen or batch))
        if repeated is not None:
            number = math.floor((end - batch / 2) / samples) + 1
            found.setdefault(max(2, number), []).append((repeated, batch - unseen or batch))
    return {number: _mean(lines, samples) for number, lines in sorted(found.items())}


def _mean(lines: Sequence[tuple[float, float]], samples: int) -> PassLoss:
    weight = sum(held for _, held in lines)
    return PassLoss(sum(loss * held for loss, held in lines) / weight, len(lines), min(1.0, weight / samples))
