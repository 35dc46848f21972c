"""Learning rate as a function of the update's index: no state to save, the same after any resume."""

import math

from card_scale.config import SCHEDULES
from card_scale.errors import ConfigurationError

DECAY_SHARE = 0.2
"""Share of all updates that the decay of ``wsd`` takes."""


def learning_rate(step: int, *, schedule: str, lr: float, min_lr: float, warmup_steps: int, total_steps: int) -> float:
    """The learning rate of update ``step``, counted from 0.

    Warm-up is linear over the first ``warmup_steps`` updates: lr / warmup_steps at the first, lr at the last of them;
    no update is wasted on a rate of 0. Then

    - ``constant``: lr;
    - ``cosine``: half a cosine from lr at update ``warmup_steps`` to min_lr at ``total_steps``, the end of the run;
    - ``wsd`` (warm-up, stable, decay): lr, and over the last ``DECAY_SHARE`` of ``total_steps`` updates (or what
      warm-up leaves of them) down to min_lr as 1 - sqrt(progress), which Hägele et al. (arXiv 2405.18392) found best.

    From ``total_steps`` on, cosine and wsd stay at min_lr. Raises ConfigurationError for an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise ConfigurationError(f"optimizer.schedule is {schedule!r}; valid are {', '.join(SCHEDULES)}")
    if step < warmup_steps:
        return lr * ((step + 1) / warmup_steps)
    if schedule == "constant":
        return lr
    if step >= total_steps:
        return min_lr
    start = warmup_steps if schedule == "cosine" else decay_start(total_steps, warmup_steps)
    progress = max(0, step - start) / max(1, total_steps - start)
    fallen = (1 - math.cos(math.pi * progress)) / 2 if schedule == "cosine" else math.sqrt(progress)
    return lr - (lr - min_lr) * fallen


def decay_start(total_steps: int, warmup_steps: int) -> int:
    """Return the update, counted from 0, from which the rate of a ``wsd`` run falls; before it are as many updates.

    Up to there the run is that of ``constant``: a study's trunk, which the runs of other lengths branch off too. It is
    ``total_steps`` where warm-up leaves nothing to decay in.
    """
    return min(total_steps, max(warmup_steps, total_steps - round(DECAY_SHARE * total_steps)))
