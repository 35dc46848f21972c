"""objective.resample: the corruption drawn anew in each epoch, or repeated."""

import pytest
import torch

from card_scale.objectives import registry
from tests.objectives.samples import samples_of

OBJECTIVES = [
    {"name": "card"},
    {"name": "mdlm"},
    {"name": "bd3lm", "block": 4},
    {"name": "bd3lm", "block": 8, "min_mask": 0.3, "max_mask": 0.8},
]


def corrupted(settings: dict, resample: bool, epoch: int, order: list[int]) -> dict[int, torch.Tensor]:
    """Return the masks by sample id of a batch of the samples in ``order``, in an epoch."""
    objective = registry.create(**settings, resample=resample)
    tokens = torch.randint(5, 100, (8, 33), generator=torch.Generator().manual_seed(1))
    ids = torch.tensor(order)
    rows = len(order)
    positions = torch.arange(rows) + epoch * rows
    samples = samples_of(tokens[ids], ids, torch.full((rows,), epoch), positions, rows)
    batch = objective.corrupt(samples, 3)
    return {number: torch.cat((batch.masked[i].float(), batch.weights[i])) for i, number in enumerate(order)}


@pytest.mark.parametrize("settings", OBJECTIVES, ids=str)
def test_frozen_noise_is_a_samples_own(settings):
    first = corrupted(settings, False, 0, [0, 1, 2, 3, 4, 5, 6, 7])
    later = corrupted(settings, False, 3, [5, 2, 7, 0, 1, 4, 6, 3])
    alone = corrupted(settings, False, 9, [6])
    for number in range(8):
        assert torch.equal(first[number], later[number])
    assert torch.equal(first[6], alone[6])
    # Not one pattern for all.
    assert len({tuple(values.tolist()) for values in first.values()}) == 8


@pytest.mark.parametrize("settings", OBJECTIVES, ids=str)
def test_resampled_noise_differs_by_epoch(settings):
    first, later = (corrupted(settings, True, epoch, list(range(8))) for epoch in (0, 3))
    assert all(not torch.equal(first[number], later[number]) for number in range(8))


def test_frozen_noise_still_covers_all_levels():
    objective = registry.create("mdlm", resample=False)
    rows = 4000
    samples = samples_of(torch.full((rows, 9), 7))
    levels = objective.corrupt(samples, 0).noise_level[:, 0].double().sort().values
    expected = torch.arange(rows, dtype=torch.float64).add(0.5) / rows
    assert (levels - expected).abs().max() < 1.95 / rows**0.5  # Kolmogorov-Smirnov, 1 in 1000
