"""The estimate of a bound on draws of a made-up model, whose bound is known."""

import math
import statistics

import pytest
import torch

from card_scale.objectives import registry
from card_scale.training.bound_estimate import LOSS, estimate, prices, sums_of_samples
from tests.objectives.samples import samples_of

SAMPLES, LENGTH, DRAWS = 32, 64, 4
OBJECTIVE = registry.create("mdlm", mask_id=4)


def drawn(seed: int, level: float, slope: float, spread: float) -> torch.Tensor:
    """The sums of draws of a model whose masked tokens cost level + slope * rate, and more or less by the token."""
    hard = spread * torch.randn((SAMPLES, LENGTH), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for draw in range(DRAWS):
        samples = samples_of(torch.full((SAMPLES, LENGTH + 1), 7))
        samples = samples._replace(
            epochs=torch.full_like(samples.sample_ids, draw),
            global_positions=draw * SAMPLES + samples.sample_ids,
            batch_size=SAMPLES,
        )
        batch = OBJECTIVE.likelihood(samples, seed)
        losses = level + slope * batch.noise_level.double() + hard
        found.append(sums_of_samples(losses, batch, LENGTH - 1))
    return torch.stack(found)


def estimated(sums: torch.Tensor, mean_rate: float | None = OBJECTIVE.mean_noise_level):
    return estimate(sums, torch.ones(SAMPLES, dtype=torch.float64), lambda local: local, mean_rate)


@pytest.mark.parametrize("level, slope", [(5.0, 0.0), (1.0, 5.0), (6.0, -3.0)])
def test_a_loss_on_a_line_has_no_noise(level, slope):
    found = estimated(drawn(1, level, slope, 0.0))
    assert found.mean == pytest.approx(level + slope * 0.5005, rel=1e-9)
    assert found.standard_error < 1e-9


def test_it_is_unbiased_and_less_noisy_and_says_how_noisy_it_is():
    draws = [drawn(seed, 1.0, 5.0, 1.0) for seed in range(60)]
    found = [estimated(sums) for sums in draws]
    plain = [float(sums[:, LOSS].mean()) for sums in draws]
    spread = statistics.stdev(one.mean for one in found)
    assert spread < 0.7 * statistics.stdev(plain)
    difference = [one.mean - other for one, other in zip(found, plain, strict=True)]
    assert abs(statistics.fmean(difference)) < 4 * statistics.stdev(difference) / math.sqrt(len(draws))
    claimed = math.sqrt(statistics.fmean(one.standard_error**2 for one in found))
    assert 0.75 * spread < claimed < 1.3 * spread


def test_without_a_known_mean_it_is_the_mean_of_the_draws():
    sums = drawn(3, 1.0, 5.0, 1.0)
    found = estimated(sums, None)
    assert found.mean == pytest.approx(float(sums[:, LOSS].mean()))
    variance = sums[:, LOSS].var(0).mean() / DRAWS / SAMPLES
    assert found.standard_error == pytest.approx(math.sqrt(variance))


def test_rows_that_do_not_count_change_nothing():
    sums, valid = drawn(2, 1.0, 5.0, 1.0), torch.ones(SAMPLES + 3, dtype=torch.float64)
    valid[SAMPLES:] = 0
    filled = torch.cat((sums, torch.zeros(DRAWS, sums.shape[1], 3, dtype=torch.float64)), dim=2)
    assert estimate(filled, valid, lambda local: local, OBJECTIVE.mean_noise_level) == pytest.approx(estimated(sums))


def test_prices_where_no_line_can_be_told():
    nothing = torch.zeros(4, 5, dtype=torch.float64)
    assert [values.tolist() for values in prices(nothing)] == [[0.0] * 4] * 2
    # One rate of 1/2 everywhere, weight 2, loss 3: w l, w, w t, w t^2, w t l.
    alike = torch.tensor([6.0, 2.0, 1.0, 0.5, 3.0], dtype=torch.float64).expand(4, 5)
    assert [values.tolist() for values in prices(alike)] == [[3.0] * 4, [0.0] * 4]
