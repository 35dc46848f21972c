"""Fits of the public table and of losses generated on its grid."""

import math

import numpy as np
import pytest

from card_scale.errors import ConfigurationError, DataError
from card_scale.laws import formulas as laws
from card_scale.laws.descent import descend, descend_all, free_indices
from card_scale.laws.fit import fit
from card_scale.laws.forms import CHINCHILLA, DATA_CONSTRAINED, GEOMETRIC, PRACTICAL
from card_scale.laws.huber import objective, residuals
from card_scale.laws.published import CONSTANTS, GPT2_UNINFORMED_LOSS, MUENNIGHOFF_REPETITION
from tests.laws.datablations import BASE, PUBLISHED, published_182, runs

FREE = free_indices(DATA_CONSTRAINED, tuple(BASE))


def logs(**repetition):
    return np.log([{**PUBLISHED, **repetition}[name] for name in DATA_CONSTRAINED.constants])


def synthetic(noise=0.0, seed=0):
    """Losses of the published law on the grid of the 182 runs."""
    table = published_182()
    clean = laws.data_constrained(PUBLISHED, table.N, table.D, table.U)
    return table._replace(loss=clean * np.exp(noise * np.random.default_rng(seed).standard_normal(len(clean))))


@pytest.fixture(scope="module")
def frozen():
    """The 182 runs with the published A, B, E, alpha and beta given."""
    return fit(DATA_CONSTRAINED, published_182(), BASE)


def test_local_descent_stays_at_the_published_minimum():
    ends = [descend(DATA_CONSTRAINED, logs(R_D=15.0, R_N=5.0), published_182(), FREE)]
    together = descend_all(DATA_CONSTRAINED, logs(R_D=15.0, R_N=5.0)[None], published_182(), FREE)
    for end, height in (*ends, (together[0][0], together[1][0])):
        assert np.exp(end[FREE[0]]) == pytest.approx(15.37, abs=0.05)
        assert np.exp(end[FREE[1]]) == pytest.approx(5.31, abs=0.02)
        assert height <= 0.0158259321


def test_many_starts_find_a_better_minimum_than_the_published_one(frozen):
    assert frozen.best.objective == pytest.approx(0.0158047, abs=5e-8)
    assert frozen.constants()["R_D"] == pytest.approx(95.4, abs=0.1)
    assert frozen.constants()["R_N"] == pytest.approx(1.706, abs=0.002)


def test_the_other_minima_are_reported(frozen):
    found = [(frozen.constants(mode)["R_D"], frozen.constants(mode)["R_N"], mode.objective) for mode in frozen.modes]
    for expected in [(47.0, 2.33, 0.0158074), (160.7, 1.449, 0.0158113), (15.37, 5.315, 0.0158259)]:
        assert any(np.allclose(one, expected, rtol=2e-3) for one in found), (expected, found)


def test_no_minimum_where_parameters_do_not_decay():
    # 1 - exp(-x / R) has one near R_D = 2.83, R_N = 1.35e17, objective 0.01492: its rounding, not the law.
    best = min(
        descend(DATA_CONSTRAINED, logs(R_D=start, R_N=math.inf), published_182(), FREE[:1])[1] for start in (1, 2.83, 9)
    )
    assert best == pytest.approx(0.01692, abs=1e-5)
    table = published_182()
    filled, ratio = laws.excess(BASE, table.N, table.U)
    rounded = filled * (1 + 1.349e17 * (1 - np.exp(-(ratio - 1) / 1.349e17)))
    data = table.U * (1 + laws.saturating(table.D / table.U - 1, 2.83))
    assert (
        objective(CHINCHILLA, np.log([BASE[name] for name in CHINCHILLA.constants]), table._replace(N=rounded, D=data))
        < 0.01493
    )


def test_noise_free_losses_return_the_constants():
    found = fit(DATA_CONSTRAINED, synthetic(), BASE, starts=24)
    assert found.constants()["R_D"] == pytest.approx(MUENNIGHOFF_REPETITION["R_D"], abs=1e-6)
    assert found.constants()["R_N"] == pytest.approx(MUENNIGHOFF_REPETITION["R_N"], abs=1e-6)


def test_noise_free_losses_return_all_seven_constants():
    found = fit(DATA_CONSTRAINED, synthetic(), {}, starts=24)
    for name, value in PUBLISHED.items():
        assert found.constants()[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize("noise, spread_of_data, spread_of_size", [(0.003, 0.15, 0.047), (0.01, 0.53, 0.16)])
def test_noise_moves_the_constants_as_far_as_stated(noise, spread_of_data, spread_of_size):
    fits = [fit(DATA_CONSTRAINED, synthetic(noise, seed), BASE, starts=6).constants() for seed in range(30)]
    errors = {name: np.array([one[name] for one in fits]) - value for name, value in MUENNIGHOFF_REPETITION.items()}
    for name, spread in (("R_D", spread_of_data), ("R_N", spread_of_size)):
        # Mean and standard deviation of 30: within four standard errors of theirs.
        assert abs(errors[name].mean()) < spread * (4 / math.sqrt(30) + 0.5)
        assert 0.5 < errors[name].std(ddof=1) / spread < 1.6


def test_explicit_sum():
    found = fit(GEOMETRIC, published_182(), BASE, starts=24)
    assert found.best.objective == pytest.approx(0.015477, abs=1e-6)
    assert found.constants()["delta_D"] == pytest.approx(0.01046, abs=5e-5)
    assert found.constants()["delta_N"] == pytest.approx(0.3676, abs=5e-4)


def test_chinchilla_with_all_tokens_counted():
    found = fit(CHINCHILLA, published_182(), {})
    assert found.best.objective <= 0.008953
    assert found.r_squared() == pytest.approx(0.903, abs=1e-3)


def test_practical_law_fits_the_table_better():
    found = fit(PRACTICAL, published_182(), {"L0": GPT2_UNINFORMED_LOSS}, starts=48)
    assert found.best.objective <= 0.006602
    assert found.r_squared() == pytest.approx(0.937, abs=1e-3)
    # Over-fitted runs kept, where the Chinchilla law has 0.300.
    with_over_fitted = fit(PRACTICAL, runs(note=""), {"L0": GPT2_UNINFORMED_LOSS}, starts=24)
    assert with_over_fitted.r_squared() == pytest.approx(0.783, abs=1e-3)
    assert fit(CHINCHILLA, runs(note=""), {}, starts=8).r_squared() == pytest.approx(0.300, abs=1e-3)


@pytest.mark.parametrize("name", ["epoch", "hoffmann"])
def test_published_chinchilla_constants_are_recovered(name):
    table = published_182()
    exact = table._replace(loss=laws.chinchilla(CONSTANTS[name], table.N, table.D))
    found = fit(CHINCHILLA, exact, {}, starts=16).constants()
    for constant, value in CONSTANTS[name].items():
        assert found[constant] == pytest.approx(value, rel=1e-5), constant


def test_both_minimisers_agree():
    # Noise of one seed, seven constants: L-BFGS-B polishes what the common descent found, and gains next to nothing.
    table = synthetic(0.01, 5)
    every = np.arange(len(DATA_CONSTRAINED.constants))
    together, heights = descend_all(DATA_CONSTRAINED, logs()[None], table, every)
    alone, height = descend(DATA_CONSTRAINED, logs(), table, every)
    assert heights[0] == pytest.approx(height, rel=1e-4)
    assert objective(DATA_CONSTRAINED, alone, table) == pytest.approx(height, rel=1e-12)
    assert objective(DATA_CONSTRAINED, together[0], table) == pytest.approx(heights[0], rel=1e-12)


def test_a_flat_valley_is_one_minimum():
    # One size only: A and alpha trade off freely along a curve, and E with them.
    table = published_182()
    exact = table._replace(N=np.full_like(table.N, 1e8), loss=laws.chinchilla(BASE, 1e8, table.D))
    noisy = exact._replace(loss=exact.loss * np.exp(0.003 * np.random.default_rng(0).standard_normal(182)))
    for runs_of_one_size in (exact, noisy):
        assert len(fit(CHINCHILLA, runs_of_one_size, {}, starts=16).modes) == 1


def test_weights_count_runs_more_than_once():
    table = synthetic(0.01, 1)
    counts = np.random.default_rng(0).integers(0, 3, (1, len(table.loss))).astype(float)
    _, weighted = descend_all(DATA_CONSTRAINED, logs()[None], table, FREE, counts)
    repeated = table.take(np.repeat(np.arange(len(table.loss)), counts[0].astype(int)))
    _, copied = descend_all(DATA_CONSTRAINED, logs()[None], repeated, FREE)
    assert weighted[0] == pytest.approx(copied[0], rel=1e-9)


def test_a_law_with_nothing_to_fit_is_evaluated():
    found = fit(DATA_CONSTRAINED, published_182(), PUBLISHED)
    assert found.best.objective == pytest.approx(0.01582593526, abs=1e-11)
    assert len(found.modes) == 1
    np.testing.assert_allclose(residuals(DATA_CONSTRAINED, found.best.logs, synthetic()), 0.0, atol=1e-13)


def test_impossible_fits_are_refused():
    with pytest.raises(ConfigurationError, match="R_X is no constant of data-constrained; it has A, B"):
        fit(DATA_CONSTRAINED, published_182(), {"R_X": 1.0})
    with pytest.raises(ConfigurationError, match="E = -1"):
        fit(DATA_CONSTRAINED, published_182(), {"E": -1.0})
    with pytest.raises(ConfigurationError, match="needs L0"):
        fit(PRACTICAL, published_182(), {})
    with pytest.raises(DataError, match="7 runs cannot determine the 7 free constants"):
        fit(DATA_CONSTRAINED, published_182().take(np.arange(7)), {})
