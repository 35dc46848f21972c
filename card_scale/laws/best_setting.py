"""Which of the settings that a cell was trained with is its best."""

import statistics
from collections.abc import Hashable, Mapping
from typing import TypeVar

S = TypeVar("S", bound=Hashable)


def best_setting(losses: Mapping[S, Mapping[str, float]]) -> S:
    """Return the setting of lowest mean loss over the seeds that all settings have.

    A seed chooses the subset too, so a setting that met an easy seed alone must not win by it. Where no seed is common
    to all, only the settings of the most seeds are compared, on the seeds that these share; where these share none
    either, by their means. The first of equal settings is returned.

    Args:
        losses: final loss in nats per token, by setting and seed; at least one setting, and for each at least one seed.
    """
    most = max(map(len, losses.values()))
    fullest = {setting: by_seed for setting, by_seed in losses.items() if len(by_seed) == most}
    for compared in (losses, fullest):
        shared = frozenset.intersection(*map(frozenset, compared.values()))
        if shared:
            return min(compared, key=lambda setting: statistics.fmean(compared[setting][seed] for seed in shared))
    return min(fullest, key=lambda setting: statistics.fmean(fullest[setting].values()))
