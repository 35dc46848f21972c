"""What a step reports, against loops over its positions."""

import pytest
import torch

from card_scale.objectives.block_diffusion import BlockDiffusionObjective
from card_scale.objectives.card import CardObjective
from card_scale.objectives.mdlm import MdlmObjective
from card_scale.training.metric_sums import LOSS, MetricSums
from tests.objectives.samples import samples_of

LENGTH = 12


def reported(objective):
    """Return (record, batch, losses) of a micro-batch of six samples, three of them in their first epoch."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(5, 50, (6, LENGTH + 1), generator=generator)
    samples = samples_of(tokens, torch.arange(6), torch.tensor([0, 1, 0, 2, 1, 0]))
    batch = objective.corrupt(samples, 3)
    losses = torch.rand((6, LENGTH), generator=generator)
    sums = MetricSums(objective.metrics)
    values = sums.of(torch.tensor(0.625), losses, batch)
    assert values.dtype == torch.float64
    named = dict(zip(sums.names, values.tolist(), strict=True))
    assert named[LOSS] == 0.625
    return sums.record(named), batch, losses


def mean_where(losses, chosen) -> float:
    picked = [losses[b, j].item() for b in range(6) for j in range(LENGTH) if chosen(b, j)]
    return sum(picked) / len(picked)


def test_card():
    """Some clean inputs stand after masks: what is predicted there is not predicted from a clean context."""
    record, batch, losses = reported(CardObjective(tail_factor=3.0, max_noise=0.6))
    masked = batch.masked.tolist()
    assert any(masked[b][j] and not masked[b][j + 1] for b in range(6) for j in range(LENGTH - 1))
    assert record.pop("card/mask_ratio") == pytest.approx(sum(map(sum, masked)) / (6 * LENGTH))
    assert record.pop("card/loss_unweighted") == pytest.approx(mean_where(losses, lambda *_: True), rel=1e-6)
    clean = mean_where(losses, lambda b, j: not any(masked[b][: j + 1]))
    assert record.pop("card/loss_clean_context") == pytest.approx(clean, rel=1e-6)
    first = [0, 2, 5]
    assert record.pop("repetition/loss_first_seen") == pytest.approx(mean_where(losses, lambda b, _: b in first))
    assert record.pop("repetition/loss_repeated") == pytest.approx(mean_where(losses, lambda b, _: b not in first))
    assert not record


@pytest.mark.parametrize("objective", [MdlmObjective(), BlockDiffusionObjective(block=4)], ids=lambda one: one.name)
def test_masked_diffusion_scores_masked_tokens_alone(objective):
    record, batch, losses = reported(objective)
    masked = batch.masked.tolist()
    expected = {
        f"{objective.name}/mask_ratio": sum(map(sum, masked)) / (6 * LENGTH),
        f"{objective.name}/loss_masked": mean_where(losses, lambda b, j: masked[b][j]),
        "repetition/loss_first_seen": mean_where(losses, lambda b, j: masked[b][j] and b in (0, 2, 5)),
        "repetition/loss_repeated": mean_where(losses, lambda b, j: masked[b][j] and b not in (0, 2, 5)),
    }
    assert record == pytest.approx(expected, rel=1e-6)


def test_means_over_no_position_are_left_out():
    sums = MetricSums(CardObjective().metrics)
    record = sums.record(dict.fromkeys(sums.names, 0.0) | {"scored": 4.0, "scored loss": 2.0})
    assert record == {"repetition/loss_repeated": 0.5}
