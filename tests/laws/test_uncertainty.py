"""Intervals and verdicts: what they rest on, and that they say so where a grid identifies nothing."""

import math

import numpy as np
import pytest
from scipy.stats import chi2
from scipy.stats import f as f_distribution

from card_scale.errors import ConfigurationError, DataError
from card_scale.laws import formulas as laws
from card_scale.laws.analysis import Settings, analyse
from card_scale.laws.bootstrap import bootstrap, percentile_interval
from card_scale.laws.coverage import Grid, coverage
from card_scale.laws.crossover import Crossover
from card_scale.laws.dependence import Dependence, dependence, ladders
from card_scale.laws.fit import fit
from card_scale.laws.fit_report import judge_crossover
from card_scale.laws.forms import CHINCHILLA, DATA_CONSTRAINED
from card_scale.laws.holdout import hold_out
from card_scale.laws.profile import interval, profile
from card_scale.laws.runs import Runs
from card_scale.laws.threshold import rise
from card_scale.laws.verdict import Kind, Verdict, judge
from tests.laws.datablations import BASE, PUBLISHED, published_182

NOISE_ONLY = Dependence(40, 20, 0.6)


def simulated(most_epochs, r_d, noise=0.003, seed=0, **axes):
    """Runs of the grid of the identifiability study with the published constants but R_D."""
    runs = Grid(most_epochs=most_epochs, **axes).runs()
    clean = laws.data_constrained({**PUBLISHED, "R_D": r_d}, runs.N, runs.D, runs.U)
    return runs._replace(loss=clean * np.exp(noise * np.random.default_rng(seed).standard_normal(len(clean))))


def test_rise_is_the_likelihood_ratio_for_small_gaussian_errors():
    # All errors inside the parabola: S / sigma^2 is the negative log-likelihood, its drop half a chi-squared.
    errors = 1e-4 * np.random.default_rng(0).standard_normal(5000)
    assert rise(errors, 1, 0.95) == pytest.approx(0.5 * chi2.ppf(0.95, 1) * 1e-8, rel=0.05)


def test_rise_is_that_of_median_regression_for_large_errors():
    # psi = +-delta and E psi' = 2 delta f(0): the ratio is delta / (2 f(0)), with the density of a Gaussian.
    errors = 0.1 * np.random.default_rng(1).standard_normal(20000)
    density = 1.0 / (0.1 * math.sqrt(2.0 * math.pi))
    assert rise(errors, 1, 0.95) == pytest.approx(0.5 * chi2.ppf(0.95, 1) * 1e-3 / (2.0 * density), rel=0.1)


def test_rise_grows_with_the_constants_fitted():
    errors = 3e-3 * np.random.default_rng(2).standard_normal(30)
    assert rise(errors, 7, 0.95) > 1.2 * rise(errors, 1, 0.95)


# 95 % quantiles of F at (1, 1), (1, 2), (1, 4) and (1, 9), from a printed table.
@pytest.mark.parametrize("count, free, quantile", [(8, 7, 161.4476), (8, 6, 18.5128), (9, 5, 7.7086), (10, 1, 5.1174)])
def test_rise_of_few_runs_has_the_quantile_of_f_with_one_and_n_minus_p(count, free, quantile):
    # So far inside the parabola that E psi' is 1: half the quantile times the variance, both with n - p.
    errors = 1e-9 * np.random.default_rng(count).standard_normal(count)
    variance = sum(error * error for error in errors) / (count - free)
    assert f_distribution.ppf(0.95, 1, count - free) == pytest.approx(quantile, abs=5e-5)
    assert rise(errors, free, 0.95) == pytest.approx(0.5 * quantile * variance, rel=1e-5, abs=0)


def test_nothing_is_rejected_by_a_law_that_passes_by_the_runs():
    assert rise(0.1 + 1e-4 * np.random.default_rng(3).standard_normal(30), 1, 0.95) == math.inf


def test_interval_of_a_curve():
    grid, heights = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), np.array([4.0, 2.0, 0.0, 3.0, 1.0, 5.0])
    # The gap at 3 lies inside: the interval spans all that is not rejected.
    assert interval(grid, heights, 1.0) == pytest.approx((1.5, 4.0))
    assert interval(grid, heights, 10.0) == (0.0, 5.0)


def test_profile_of_one_free_constant_is_the_objective():
    given = {name: value for name, value in PUBLISHED.items() if name != "R_D"}
    runs = simulated(64, 31.93)
    curve = profile(fit(DATA_CONSTRAINED, runs, given, starts=8), "R_D")
    by_hand = []
    for value in curve.values:
        error = np.log(laws.data_constrained({**PUBLISHED, "R_D": value}, runs.N, runs.D, runs.U) / runs.loss)
        by_hand.append(sum(r * r / 2 if abs(r) <= 1e-3 else 1e-3 * (abs(r) - 5e-4) for r in error))
    np.testing.assert_allclose(curve.objectives, by_hand, rtol=1e-9)
    # And its ends are where it crosses the limit, to the resolution of the grid.
    inside = curve.values[curve.objectives <= curve.lowest + curve.rise]
    assert curve.low == pytest.approx(inside.min(), rel=2e-3)
    assert curve.high == pytest.approx(inside.max(), rel=2e-3)


def test_profile_lies_below_any_fit_with_the_constant_given():
    runs = simulated(64, 15.387756, seed=4)
    found = fit(DATA_CONSTRAINED, runs, {}, starts=12)
    curve = profile(found, "beta")
    assert curve.lowest == pytest.approx(found.best.objective, rel=1e-4)
    for place in np.linspace(0, len(curve.values) - 1, 5).astype(int):
        alone = fit(DATA_CONSTRAINED, runs, {"beta": float(curve.values[place])}, starts=4)
        assert curve.objectives[place] <= alone.best.objective * (1 + 1e-3) + 1e-9


def test_bootstrap_spreads_as_the_noise_does():
    given = {name: value for name, value in PUBLISHED.items() if name != "R_D"}
    fits = [fit(DATA_CONSTRAINED, simulated(64, 31.93, seed=seed), given, starts=4) for seed in range(40)]
    true_spread = np.std([math.log(found.constants()["R_D"]) for found in fits])
    spreads = [np.std(bootstrap(found, 100, seed=3)[:, DATA_CONSTRAINED.constants.index("R_D")]) for found in fits[:10]]
    assert 0.6 < np.mean(spreads) / true_spread < 1.6


def test_bootstrap_is_reproducible_and_draws_groups_whole():
    found = fit(CHINCHILLA, published_182(), {}, starts=8)
    np.testing.assert_array_equal(bootstrap(found, 5, seed=1), bootstrap(found, 5, seed=1))
    every_run_alone = bootstrap(found, 5, seed=1, groups=np.arange(182))
    np.testing.assert_array_equal(every_run_alone, bootstrap(found, 5, seed=1))
    one_group = bootstrap(found, 5, seed=1, groups=np.zeros(182, dtype=int))
    np.testing.assert_allclose(one_group, np.broadcast_to(one_group[0], one_group.shape), atol=1e-12)
    low, high = percentile_interval(found, every_run_alone, "E", 0.95)
    assert low < high


def test_a_percentile_interval_leaves_out_equal_tails():
    found = fit(CHINCHILLA, published_182(), {}, starts=8)
    samples = np.tile(found.best.logs, (101, 1))
    samples[:, CHINCHILLA.constants.index("A")] = np.random.default_rng(0).permutation(np.linspace(5.0, 6.0, 101))
    for level, tail in ((0.95, 0.025), (0.8, 0.1)):
        expected = (math.exp(5.0 + tail), math.exp(6.0 - tail))
        assert percentile_interval(found, samples, "A", level) == pytest.approx(expected)


def test_ladders_join_runs_that_differ_in_tokens_only():
    size = np.array([1.0, 1.0, 1.0, 1.0, 2.0, 1.0, 1.0])
    tokens = np.array([1.0, 2.0, 4.0, 8.0, 1.0, 16.0, 32.0])
    unique = np.array([1.0, 1.0, 1.0, 4.0, 1.0, 16.0, 32.0])
    found = ladders(Runs(size, tokens, unique, np.ones(7)))
    # Three epochs counts of U = 1; U = 4 alone; another size; two runs without repetition.
    assert [len(set(found[[0, 1, 2]])), len(set(found)), found[5] == found[6]] == [1, 4, True]


def test_independent_errors_are_no_pattern_and_waves_are():
    runs, draws = Grid(most_epochs=64).runs(), np.random.default_rng(0)
    noise = draws.standard_normal((300, len(runs.N)))
    called = np.mean([dependence(runs._replace(loss=np.ones(len(row))), 0.01 * row).found for row in noise])
    assert called < 0.03
    wave = 0.01 * np.sin(np.log(runs.D))
    assert dependence(runs, wave).found


def test_signs_are_compared_along_each_ladder_by_hand():
    """Ladders of five and of three runs, in any order of the rows: 4 + 2 pairs, of which 3 + 1 agree."""
    size = np.array([1.0] * 5 + [2.0] * 3)
    tokens = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 1.0, 2.0, 4.0])
    signs = 0.01 * np.array([1.0, 1.0, -1.0, -1.0, -1.0, 1.0, 1.0, -1.0])
    # At least 4 of 6 tosses: 15 + 6 + 1 of 64.
    for rows in (np.arange(8), np.array([3, 7, 0, 5, 2, 6, 4, 1])):
        runs = Runs(size[rows], tokens[rows], np.ones(8), np.ones(8))
        assert dependence(runs, signs[rows]) == pytest.approx((6, 4, 22 / 64))
    agreeing = Runs(size[:5], tokens[:5], np.ones(5), np.ones(5))
    assert dependence(agreeing, 0.01 + 0.001 * tokens[:5]) == pytest.approx((4, 4, 1 / 16))
    assert dependence(agreeing, 0.01 * np.array([1.0, -1.0, 1.0, -1.0, 1.0])) == (4, 0, 1.0)


def test_rounding_is_no_pattern():
    runs = Grid(most_epochs=64).runs()
    assert not dependence(runs, np.full(len(runs.N), 1e-9)).found


@pytest.mark.parametrize(
    "ends, verdict, reason",
    [
        ((3.0, 5.0), Verdict.IDENTIFIED, ""),
        ((3.0, math.inf), Verdict.LOWER_BOUND, "no value above 3 is rejected, infinity included"),
        ((0.0, 5.0), Verdict.UPPER_BOUND, "no value below 5 is rejected, 0 included"),
        ((0.0, math.inf), Verdict.NOT_IDENTIFIED, "no value is rejected"),
        ((3.0, 33.0), Verdict.NOT_IDENTIFIED, "known to a factor of 11 only, the limit of a constant of decay is 10"),
    ],
)
def test_verdicts(ends, verdict, reason):
    found = judge("R_D", Kind.DECAY, 4.0, ends, (1.0, 100.0), NOISE_ONLY)
    assert (found.verdict, found.reason, found.low, found.high) == (verdict, reason, *ends)


# Published 95 % intervals of the replication of Chinchilla's fit, which are worth quoting; and others that are not.
@pytest.mark.parametrize(
    "name, ends, verdict",
    [
        ("E", (1.769, 1.871), Verdict.IDENTIFIED),
        ("alpha", (0.317, 0.373), Verdict.IDENTIFIED),
        ("beta", (0.331, 0.415), Verdict.IDENTIFIED),
        ("A", (285.0, 744.0), Verdict.IDENTIFIED),
        ("B", (1042.0, 5810.0), Verdict.IDENTIFIED),
        ("E", (0.437, 2.07), Verdict.NOT_IDENTIFIED),
        ("E", (1.5, 1.9), Verdict.NOT_IDENTIFIED),
        ("beta", (0.2, 0.41), Verdict.NOT_IDENTIFIED),
    ],
)
def test_how_wide_an_interval_may_be_depends_on_the_constant(name, ends, verdict):
    assert judge(name, CHINCHILLA.kinds[name], ends[0], ends, None, NOISE_ONLY).verdict is verdict


@pytest.mark.parametrize(
    "ends, verdict, reason",
    [
        ((-1.27, -0.8), Verdict.IDENTIFIED, ""),
        ((-1.27, -0.42), Verdict.NOT_IDENTIFIED, "known to a factor of 3.02 only, the limit of an exponent is 2"),
        ((-0.07, 0.87), Verdict.NOT_IDENTIFIED, "neither sign is rejected"),
        ((-math.inf, math.inf), Verdict.NOT_IDENTIFIED, "no value is rejected"),
        ((-math.inf, -0.5), Verdict.UPPER_BOUND, "no value below -0.5 is rejected, -inf included"),
        ((-0.5, math.inf), Verdict.LOWER_BOUND, "no value above -0.5 is rejected, infinity included"),
    ],
)
def test_verdicts_on_an_exponent_that_may_be_negative(ends, verdict, reason):
    found = judge("exponent of N", Kind.EXPONENT, -0.6, ends)
    assert (found.verdict, found.reason) == (verdict, reason)


def test_a_constant_whose_whole_interval_is_the_bound_that_stands_for_infinity_is_large():
    assert judge("R_N", Kind.DECAY, math.inf, (math.inf, math.inf)).verdict is Verdict.LOWER_BOUND


@pytest.mark.parametrize(
    "compute, low, high, verdict, reason",
    [
        (1e18, 5e17, 2e18, Verdict.IDENTIFIED, ""),
        (1e18, 1e17, 5e18, Verdict.NOT_IDENTIFIED, "known to a factor of 50 only, the limit of a crossover is 10"),
        (1e18, 5e17, math.inf, Verdict.LOWER_BOUND, "no value above 5e+17 is rejected, infinity included"),
        (math.inf, math.inf, math.inf, Verdict.LOWER_BOUND, "no value above 1e+20 is rejected, infinity included"),
        (0.0, 0.0, 0.0, Verdict.UPPER_BOUND, "no value below 1e+16 is rejected, 0 included"),
        (0.0, 0.0, 3e17, Verdict.UPPER_BOUND, "no value below 3e+17 is rejected, 0 included"),
        (1e18, 0.0, math.inf, Verdict.NOT_IDENTIFIED, "no value is rejected"),
    ],
)
def test_verdict_on_a_crossover(compute, low, high, verdict, reason):
    found = judge_crossover(Crossover(1e8, compute, low, high, first=1e16, last=1e20))
    assert (found.name, found.verdict, found.reason) == ("U = 1e+08", verdict, reason)


def test_a_misfit_identifies_nothing_and_widens_the_interval():
    found = judge("R_D", Kind.DECAY, 4.0, (3.0, 5.0), (2.0, 4.5), Dependence(40, 38, 1e-9))
    assert (found.verdict, found.low, found.high) == (Verdict.NOT_IDENTIFIED, 2.0, 5.0)
    assert "misses a pattern" in found.reason


@pytest.mark.parametrize("given", [BASE, {}], ids=["base given", "all free"])
def test_the_public_table_does_not_identify_r_d(given):
    found = analyse(DATA_CONSTRAINED, published_182(), given, Settings(starts=12, bootstrap=20))
    said = {one.name: one for one in found.judgements}["R_D"]
    assert said.verdict is not Verdict.IDENTIFIED
    assert "R_D" in found.unidentified()
    if given:
        assert said.low < 15.387756
        assert math.isinf(said.high)
    else:
        # Both ends are finite here, but of a law that these runs contradict.
        assert found.pattern.found
        assert found.by_ladder


@pytest.mark.parametrize("waves", [0.0, 0.01], ids=["independent", "a pattern"])
def test_the_bootstrap_draws_whole_ladders_where_their_errors_depend(waves):
    given = {name: value for name, value in PUBLISHED.items() if name != "R_D"}
    runs = simulated(64, 31.93)
    runs = runs._replace(loss=runs.loss * np.exp(waves * np.sin(np.log(runs.D))))
    found = analyse(DATA_CONSTRAINED, runs, given, Settings(starts=4, bootstrap=30, seed=5))
    assert found.pattern.found == found.by_ladder == bool(waves)
    ladder_of = list(zip(runs.N, runs.U, strict=True))
    numbers = np.array([sorted(set(ladder_of)).index(ladder) for ladder in ladder_of])
    ends = {
        "whole": percentile_interval(found.fit, bootstrap(found.fit, 30, 5, numbers), "R_D", 0.95),
        "one by one": percentile_interval(found.fit, bootstrap(found.fit, 30, 5), "R_D", 0.95),
    }
    drawn, other = ("whole", "one by one") if waves else ("one by one", "whole")
    (said,) = found.judgements
    assert said.bootstrap == ends[drawn] != ends[other]


def test_a_minimum_that_only_a_profile_finds_is_taken():
    settings = Settings(starts=1, bootstrap=0, seed=1)
    assert fit(DATA_CONSTRAINED, published_182(), BASE, settings.starts, settings.seed).best.objective > 0.0158259
    found = analyse(DATA_CONSTRAINED, published_182(), BASE, settings)
    assert found.fit.best.objective == pytest.approx(0.0158047, abs=5e-8)
    assert len(found.fit.modes) > 1


def test_published_value_is_within_the_interval_but_so_is_any_larger():
    curve = profile(fit(DATA_CONSTRAINED, published_182(), BASE), "R_D")
    # The table's own statement: flat to 1 % of the objective from 8 to 10 000.
    flat = (curve.values > 8.0) & (curve.values < 1e4)
    assert curve.objectives[flat].max() <= curve.lowest * 1.0125
    assert curve.low == pytest.approx(3.8, abs=0.3)
    assert math.isinf(curve.high)


@pytest.mark.parametrize(
    "r_d, most_epochs, verdict",
    [
        (15.387756, 64, Verdict.IDENTIFIED),
        (31.93, 64, Verdict.IDENTIFIED),
        (512.85, 256, Verdict.IDENTIFIED),
        (512.85, 4, Verdict.LOWER_BOUND),
    ],
)
def test_verdict_on_simulated_grids(r_d, most_epochs, verdict):
    given = {name: value for name, value in PUBLISHED.items() if name != "R_D"}
    found = analyse(DATA_CONSTRAINED, simulated(most_epochs, r_d, seed=7), given, Settings(starts=8, bootstrap=100))
    (said,) = found.judgements
    assert said.verdict is verdict
    assert said.low <= r_d <= said.high


@pytest.mark.parametrize("r_d, most_epochs", [(15.387756, 4), (31.93, 64), (512.85, 256)])
def test_intervals_cover_at_their_nominal_rate(r_d, most_epochs):
    # 19 of 20 on average; fewer than 85 % or a pattern in more than 6 % of 80 has a probability near 1e-4.
    found = coverage(r_d, Grid(most_epochs=most_epochs), ("R_D",), 0.003, 80, seed=0)
    assert found.covered >= 0.85
    assert found.patterns <= 0.06


def test_few_epochs_leave_a_large_constant_unbounded():
    found = coverage(512.85, Grid(most_epochs=4), ("R_D",), 0.003, 60, seed=0)
    assert found.unbounded >= 0.85
    assert found.verdicts[Verdict.LOWER_BOUND] >= 0.8
    assert found.covered >= 0.87


def test_grid_of_the_identifiability_study():
    runs = Grid(most_epochs=6).runs()
    assert len(runs.N) == 4 * 2 * 4
    np.testing.assert_array_equal(np.unique(runs.D / runs.U), [1.0, 2.0, 4.0, 6.0])
    with pytest.raises(ConfigurationError, match="R_D must be fitted"):
        coverage(15.0, Grid(), ("R_N",), 0.01, 1, 0)


def test_hold_out_predicts_the_largest_runs_of_a_true_law():
    runs = simulated(64, 15.387756, seed=2)
    found = hold_out(DATA_CONSTRAINED, runs, {}, 6, starts=12, seed=0)
    assert set(found.rows) == set(np.argsort(runs.N * runs.D)[-6:])
    assert found.largest_fitted == pytest.approx(np.sort(6 * runs.N * runs.D)[-7])
    assert found.outside < 0.015
    assert found.inside == pytest.approx(0.003, rel=0.3)


def test_hold_out_sees_that_a_law_does_not_extrapolate():
    # Repeated tokens counted as new ones: such a law expects too much of those runs that repeat most.
    runs = simulated(256, 15.387756, sizes=(1e8, 1.2e8), unique=(1e8, 1.2e8))
    found = hold_out(CHINCHILLA, runs, {}, 8, starts=12, seed=0)
    assert found.outside > 2 * found.inside
    assert found.bias < 0.0


def seeds_of_cells(seeds):
    """Runs of the plain law in 3 by 3 cells, with so many seeds in the three cells of the most compute."""
    cells = [(n, d) for n in (1e7, 1e8, 1e9) for d in (1e8, 1e9, 1.1e10)]
    cells += sorted(cells, key=math.prod)[-3:] * (seeds - 1)
    size, tokens = np.array(cells).T
    noise = 1e-3 * np.random.default_rng(0).standard_normal(len(size))
    return Runs(size, tokens, tokens, laws.chinchilla(PUBLISHED, size, tokens) * np.exp(noise))


@pytest.mark.parametrize("count, taken", [(1, 3), (3, 3), (4, 6), (7, 9), (9, 9)])
def test_hold_out_takes_whole_cells(count, taken):
    runs = seeds_of_cells(seeds=3)
    found = hold_out(CHINCHILLA, runs, {}, count, starts=4, seed=0)
    assert (len(found.rows), found.asked) == (taken, count)
    cells = set(zip(runs.N, runs.D, strict=True))
    held = {(runs.N[row], runs.D[row]) for row in found.rows}
    kept = {(runs.N[row], runs.D[row]) for row in range(len(runs.N)) if row not in found.rows}
    assert held | kept == cells
    assert not held & kept


@pytest.mark.parametrize(
    "runs, count, message",
    [
        # 15 runs, three seeds in each of the three largest cells; the law has 5 constants.
        (seeds_of_cells(3), 10, "10 runs to hold out of 15, 10 with .* needs 6 runs .* from 1 to 9 can be"),
        (seeds_of_cells(3), 400, "400 runs to hold out of 15, 15 with .* from 1 to 9 can be"),
        # 6 runs are just enough to fit.
        (seeds_of_cells(1).take(np.arange(6)), 1, "1 runs to hold out of 6, 1 with .*: none can be"),
    ],
)
def test_hold_out_that_leaves_too_few_says_what_would_be_valid(runs, count, message):
    with pytest.raises(DataError, match=message):
        hold_out(CHINCHILLA, runs, {}, count, 4, 0)


def test_hold_out_of_no_runs_is_refused():
    with pytest.raises(ConfigurationError, match="0 runs to hold out; at least 1 can be"):
        hold_out(CHINCHILLA, published_182(), {}, 0, 4, 0)
