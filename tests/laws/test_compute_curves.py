"""Chinchilla's three approaches, power laws, optimal epochs and crossovers on runs whose answer is known."""

import math

import numpy as np
import pytest
from scipy.stats import linregress

from card_scale.errors import DataError
from card_scale.laws import formulas as laws
from card_scale.laws.allocation import compute_optimal
from card_scale.laws.best_epochs import optima, optimal_epochs_law
from card_scale.laws.crossover import Crossover, critical_compute_law, crossover, frontier
from card_scale.laws.envelope import envelope
from card_scale.laws.forms import CHINCHILLA
from card_scale.laws.huber import constants_at
from card_scale.laws.isoflop import isoflops
from card_scale.laws.power_law import fit_power_law
from card_scale.laws.published import CONSTANTS
from card_scale.laws.runs import Runs
from card_scale.laws.variable_projection import variable_projection
from tests.laws.datablations import PUBLISHED, published_182

EPOCH = CONSTANTS["epoch"]
TIED = CONSTANTS["muennighoff-c4"]


def runs_of(size, tokens, loss, unique=None):
    size, tokens, loss = (np.asarray(column, float) for column in np.broadcast_arrays(size, tokens, loss))
    return Runs(size, tokens, tokens if unique is None else np.full_like(tokens, unique), loss)


def budgets(params, width=1.0, centre=0.0):
    """Nine sizes around the optimum of five budgets, log-spaced."""
    cells = []
    for budget in np.logspace(18, 22, 5):
        best = compute_optimal(params, budget).parameters * math.exp(centre)
        cells += [(best * math.exp(step), budget) for step in np.linspace(-width, width, 9)]
    size, budget = np.array(cells).T
    tokens = budget / 6 / size
    return runs_of(size, tokens, laws.chinchilla(params, size, tokens))


def test_isoflops_find_the_exponent_of_a_tied_law():
    # Equal exponents make the loss symmetric in log N about the optimum, where the parabola is unbiased.
    found = isoflops(budgets(TIED))
    assert found.sizes.exponents["C"].value == pytest.approx(0.5, abs=1e-6)
    for valley in found.valleys:
        assert valley.parameters == pytest.approx(compute_optimal(TIED, valley.compute).parameters, rel=1e-6)
        assert valley.tokens * valley.parameters * 6 == pytest.approx(valley.compute)


def test_the_lowest_point_of_a_parabola_in_log_size():
    """2 + 0.3 (log N - log 3e7)^2 on two budgets, the sizes not centred on the minimum."""
    size = np.tile([1e7, 2e7, 5e7, 2e8], 2)
    tokens = np.repeat([1e18, 1e20], 4) / 6 / size
    found = isoflops(runs_of(size, tokens, 2.0 + 0.3 * np.log(size / 3e7) ** 2))
    for valley, compute in zip(found.valleys, (1e18, 1e20), strict=True):
        assert valley.compute == pytest.approx(compute)
        assert valley.parameters == pytest.approx(3e7)
        assert valley.tokens == pytest.approx(compute / 6 / 3e7)
        assert valley.loss == pytest.approx(2.0)
        assert valley.runs == 4


def test_isoflops_of_wide_grids_are_biased_as_known():
    exact = EPOCH["beta"] / (EPOCH["alpha"] + EPOCH["beta"])
    narrow, wide = (isoflops(budgets(EPOCH, width, 0.5 * width)) for width in (0.3, 2.5))
    assert narrow.sizes.exponents["C"].value == pytest.approx(exact, abs=1e-3)
    errors = [abs(one.valleys[2].parameters / compute_optimal(EPOCH, 1e20).parameters - 1) for one in (narrow, wide)]
    assert errors[0] < 0.02 < errors[1]


def test_budgets_without_an_optimum_are_left_out_with_the_reason():
    good = budgets(TIED)
    one_sided = budgets(TIED, 1.0, 3.0).take(np.arange(9))
    joined = Runs(*(np.concatenate([a[9:], b]) for a, b in zip(good[:4], one_sided[:4], strict=True)))
    found = isoflops(joined)
    assert len(found.valleys) == 4
    assert "optimum lies outside the sizes" in found.rejected[0]
    with pytest.raises(DataError, match="0 of 1 compute budgets"):
        isoflops(one_sided)


def test_envelope_finds_the_exponent():
    sizes = np.logspace(7, 10, 25)
    size, tokens = (axis.ravel() for axis in np.meshgrid(sizes, np.logspace(8, 12, 60), indexing="ij"))
    found = envelope(runs_of(size, tokens, laws.chinchilla(EPOCH, size, tokens)), samples=40)
    exact = EPOCH["beta"] / (EPOCH["alpha"] + EPOCH["beta"])
    exponent = found.sizes.exponents["C"]
    assert exponent.value == pytest.approx(exact, abs=0.02)
    assert exponent.low < exact < exponent.high
    assert found.sizes.k.low < found.sizes.k.value < found.sizes.k.high
    assert found.curves > 10


def test_envelope_without_resamples_has_no_interval():
    size, tokens = (axis.ravel() for axis in np.meshgrid(np.logspace(7, 9, 8), np.logspace(8, 11, 12), indexing="ij"))
    found = envelope(runs_of(size, tokens, laws.chinchilla(EPOCH, size, tokens)), samples=0)
    assert found.sizes.exponents["C"][1:] == (-math.inf, math.inf)
    assert found.sizes.k[1:] == (0.0, math.inf)


def test_envelope_needs_curves():
    with pytest.raises(DataError, match="2 sizes have two token counts"):
        envelope(runs_of([1e7, 1e7, 1e8, 1e8, 1e9], [1e9, 2e9, 1e9, 2e9, 1e9], [4, 3, 4, 3, 4]))


@pytest.mark.parametrize("name", ["epoch", "hoffmann"])
def test_variable_projection_recovers_the_constants(name):
    table = published_182()
    exact = table._replace(loss=laws.chinchilla(CONSTANTS[name], table.N, table.D))
    for constant, value in variable_projection(exact).items():
        assert value == pytest.approx(CONSTANTS[name][constant], rel=1e-5), constant


def test_variable_projection_is_the_least_squares_fit():
    table = published_182()
    found = variable_projection(table)
    logs = np.log([found[name] for name in CHINCHILLA.constants])

    def squares(at):
        return np.sum((CHINCHILLA.law(constants_at(CHINCHILLA, at), table) / table.loss - 1) ** 2)

    gradient = [(squares(logs + step) - squares(logs - step)) / 2e-5 for step in 1e-5 * np.eye(5)]
    np.testing.assert_allclose(gradient, 0.0, atol=1e-5)


def test_power_law_against_another_library():
    draws = np.random.default_rng(0)
    x = draws.uniform(1, 100, 12)
    y = 3.0 * x**0.7 * np.exp(0.1 * draws.standard_normal(12))
    other = linregress(np.log(x), np.log(y))
    found = fit_power_law(y, {"x": x})
    assert found.exponents["x"].value == pytest.approx(other.slope)
    assert math.log(found.k.value) == pytest.approx(other.intercept)
    # 97.5 % point of Student's t with 10 degrees of freedom.
    assert found.exponents["x"].high - other.slope == pytest.approx(2.228139 * other.stderr, rel=1e-6)
    assert math.log(found.k.high) - other.intercept == pytest.approx(2.228139 * other.intercept_stderr, rel=1e-6)
    assert found(x=x[:3]) == pytest.approx(np.exp(other.intercept + other.slope * np.log(x[:3])))


def test_power_law_of_as_many_points_as_constants_has_no_interval():
    found = fit_power_law([1.0, 8.0], {"x": [1.0, 4.0]})
    assert found.exponents["x"] == pytest.approx((1.5, -math.inf, math.inf))


def test_power_law_refuses_factors_that_do_not_vary():
    with pytest.raises(DataError, match="3 points do not determine the exponents of U, N"):
        fit_power_law([1.0, 2.0, 3.0], {"U": [1e8, 1e8, 1e8], "N": [1e6, 1e7, 1e8]})


def ladder(size, unique, optimum, epochs=(1, 2, 4, 8, 16, 32, 64, 128)):
    epochs = np.array(epochs, float)
    return [(size, e * unique, unique, 3.0 + 0.01 * math.log(e / optimum) ** 2) for e in epochs]


def test_optimal_epochs_and_their_law():
    truth = {"k": 0.05, "by_U": 0.39, "by_N": -0.2}
    cells = []
    for size in (1e6, 1e7, 1e8):
        for unique in (1e7, 1e8, 1e9):
            cells += ladder(size, unique, float(laws.optimal_epochs(truth, size, unique)))
    found = optima(Runs(*np.array(cells).T))
    assert len(found) == 9
    for one in found:
        expected = float(laws.optimal_epochs(truth, one.parameters, one.unique))
        if one.inside:
            assert one.epochs == pytest.approx(expected, rel=1e-6)
            assert one.low < expected < one.high
    law = optimal_epochs_law(found)
    assert law.k.value == pytest.approx(0.05, rel=1e-6)
    assert law.exponents["U"].value == pytest.approx(0.39, abs=1e-8)
    assert law.exponents["N"].value == pytest.approx(-0.2, abs=1e-8)


def test_ladders_that_do_not_turn_give_bounds():
    rising, falling = ladder(1e6, 1e7, 0.1), ladder(1e6, 1e8, 1e4)
    short = ladder(1e6, 1e9, 3.0, epochs=(1, 2))
    found = optima(Runs(*np.array(rising + falling + short).T))
    assert [(one.epochs, one.low, one.high) for one in found] == [(1.0, 0.0, 2.0), (128.0, 64.0, math.inf)]
    assert not any(one.inside for one in found)
    with pytest.raises(DataError, match="0 of 2 ladders show the turn"):
        optimal_epochs_law(found)


@pytest.mark.parametrize("factor, other", [("N", "U"), ("U", "N")])
def test_a_factor_that_does_not_vary_is_left_out_of_the_law_of_optimal_epochs(factor, other):
    cells = []
    for value in (1e7, 1e8, 1e9):
        size, unique = (value, 1e8) if factor == "N" else (1e8, value)
        cells += ladder(size, unique, 10.0 * (value / 1e8) ** 0.3)
    law = optimal_epochs_law(optima(Runs(*np.array(cells).T)))
    assert other not in law.exponents
    assert law.exponents[factor].value == pytest.approx(0.3, abs=1e-8)
    assert law.k.value == pytest.approx(10.0 / 1e8**0.3, rel=1e-6)


def test_seeds_of_a_ladder_are_averaged():
    cells = [(1e6, e * 1e7, 1e7, loss) for e, loss in [(1, 4.0), (2, 3.0), (2, 3.4), (4, 3.1), (4, 3.1), (8, 3.5)]]
    (found,) = optima(Runs(*np.array(cells).T))
    assert (found.loss, found.low, found.high) == (pytest.approx(3.1), 2.0, 8.0)


def arm(offset, slope, compute, unique=1e8, noise=0.0, seed=0):
    """Losses that fall linearly in log10 compute."""
    compute = np.asarray(compute)
    size = np.sqrt(compute / 6)
    loss = offset - slope * (np.log10(compute) - 18)
    loss = loss + noise * np.random.default_rng(seed).standard_normal(len(compute))
    return runs_of(size, size, loss, unique)


def test_crossover_of_two_lines():
    compute = np.logspace(17, 21, 17)
    found = crossover(arm(4.0, 0.1, compute), arm(4.3, 0.25, compute), samples=50)
    assert found.inside
    assert found.compute == pytest.approx(1e20, rel=1e-9)
    assert found.low <= 1e20 <= found.high
    assert (found.first, found.last) == pytest.approx((1e17, 1e21))


def test_crossover_interval_covers():
    compute = np.logspace(17, 21, 17)
    covered = []
    for seed in range(40):
        noisy = (arm(4.0, 0.1, compute, noise=0.01, seed=seed), arm(4.3, 0.25, compute, noise=0.01, seed=100 + seed))
        found = crossover(*noisy, samples=60, seed=seed)
        covered.append(found.low <= 1e20 <= found.high)
    assert np.mean(covered) >= 0.8


@pytest.mark.parametrize("level, edge", [(0.95, 2), (0.9, 5), (0.5, 25)])
def test_crossover_interval_leaves_out_no_more_than_its_share_of_the_draws(level, edge):
    found = crossover(*crossing_arms(1e8, 0.01), samples=100, level=level)
    ordered = sorted(found.draws)
    assert not math.isnan(sum(ordered))
    assert (found.low, found.high) == (ordered[edge], ordered[99 - edge])
    assert found.low < found.high


def test_no_crossover_is_said_to_lie_outside():
    compute = np.logspace(17, 19, 9)
    assert crossover(arm(4.0, 0.1, compute), arm(4.3, 0.25, compute), 20)[1:4] == (math.inf, math.inf, math.inf)
    assert crossover(arm(4.3, 0.1, compute), arm(4.0, 0.1, compute), 20)[1:4] == (0.0, 0.0, 0.0)


def test_crossover_counts_the_flops_of_the_table():
    compute = np.logspace(17, 21, 17)
    twice = arm(4.3, 0.25, compute)
    twice = twice._replace(counted_flops=2 * twice.flops())
    found = crossover(arm(4.0, 0.1, compute), twice, samples=0)
    # The same losses at twice the cost: 4.3 - 0.25 (x - log10 2) = 4 - 0.1 x, x over 1e18.
    assert math.log10(found.compute) == pytest.approx(18 + (0.3 + 0.25 * math.log10(2)) / 0.15, rel=1e-9)


def test_frontier_is_the_lowest_loss_so_far():
    compute, lowest = frontier(runs_of([1, 1, 1, 2], [4, 1, 2, 1], [3.0, 5.0, 6.0, 4.0], 1))
    np.testing.assert_allclose(np.exp(compute), [6, 12, 24])
    np.testing.assert_array_equal(lowest, [5.0, 4.0, 3.0])


def test_more_seeds_do_not_make_a_curve_look_better():
    compute, lowest = frontier(runs_of([1, 1, 1, 1], [1, 2, 2, 2], [5.0, 3.0, 4.0, 5.0], 1))
    np.testing.assert_allclose(np.exp(compute), [6, 12])
    np.testing.assert_array_equal(lowest, [5.0, 4.0])


def test_curves_that_cannot_be_compared_are_refused():
    compute = np.logspace(17, 19, 9)
    with pytest.raises(DataError, match="share no compute: base 1e\\+17 to 1e\\+19 FLOPs, challenger 1e\\+20"):
        crossover(arm(4.0, 0.1, compute), arm(4.0, 0.1, 1e3 * compute), 5)
    with pytest.raises(DataError, match="one number of unique tokens"):
        crossover(arm(4.0, 0.1, compute), arm(4.0, 0.1, compute, unique=2e8), 5)
    with pytest.raises(DataError, match="2 computes of the challenger"):
        crossover(arm(4.0, 0.1, compute), arm(4.0, 0.1, compute[:2]), 5)


def crossing_arms(unique, noise=0.0, seed=0):
    """Two lines that cross at 191.6 U^2.174 FLOPs, in the middle of 17 runs each."""
    crossing = 191.6 * unique**2.174
    compute = crossing * np.logspace(-2, 2, 17)
    line = np.log10(crossing) - 18
    base = arm(4.0, 0.1, compute, unique, noise, seed)
    return base, arm(4.0 + 0.15 * line, 0.25, compute, unique, noise, seed + 1)


def test_critical_compute_of_several_crossovers():
    found = [crossover(*crossing_arms(unique), samples=20) for unique in (1e8, 2e8, 4e8)]
    law = critical_compute_law(found)
    assert law.exponents["U"].value == pytest.approx(2.174, abs=1e-6)
    assert law.k.value == pytest.approx(191.6, rel=1e-4)


@pytest.mark.parametrize("unique", [(1e8, 4e8), (1e8, 2e8, 4e8, 8e8)])
def test_critical_compute_law_covers_with_the_noise_of_its_crossovers(unique):
    covered, widths = [], []
    for seed in range(30):
        arms = [crossing_arms(held, 0.01, 1000 * seed + 10 * place) for place, held in enumerate(unique)]
        found = [crossover(*pair, samples=60, seed=seed) for pair in arms]
        assert all(one.bounded for one in found)
        slope = critical_compute_law(found).exponents["U"]
        covered.append(slope.low <= 2.174 <= slope.high)
        widths.append(slope.high - slope.low)
    # 95 % nominal; the bootstrap of a crossing of lines through few runs is a little narrow.
    assert np.mean(covered) >= 0.8
    assert np.median(widths) < 2.0


def test_law_of_two_crossovers_is_refitted_to_their_draws():
    found = [crossover(*crossing_arms(held, 0.01), samples=100) for held in (1e8, 4e8)]
    law = critical_compute_law(found, level=0.9)
    # Through two points a slope is the ratio of logarithms; each draw has its own.
    draws = [math.log(late / early) / math.log(4) for early, late in zip(found[0].draws, found[1].draws, strict=True)]
    assert law.exponents["U"][1:] == pytest.approx(np.quantile(draws, [0.05, 0.95]))
    assert law.exponents["U"].value == pytest.approx(math.log(found[1].compute / found[0].compute) / math.log(4))


def test_arms_of_one_law_give_no_critical_compute():
    sizes, epochs = (3e7, 1e8, 3e8, 1e9), 2.0 ** np.arange(7)
    points_inside, laws_found, tables = 0, 0, 40
    for table in range(tables):
        draws, found = np.random.default_rng(table), []
        for unique in (1e8, 2e8, 4e8):
            size, tokens = (axis.ravel() for axis in np.meshgrid(sizes, epochs * unique, indexing="ij"))
            clean = laws.data_constrained(PUBLISHED, size, tokens, unique)
            arms = (clean * np.exp(0.003 * draws.standard_normal(len(size))) for _ in range(2))
            found.append(crossover(*(runs_of(size, tokens, loss, unique) for loss in arms), samples=50, seed=table))
        points_inside += sum(one.inside for one in found) >= 2
        laws_found += sum(one.bounded for one in found) >= 2
    # Noise alone makes them cross inside the runs, so the estimates must not make a law.
    assert points_inside > 0.3 * tables
    assert laws_found <= 0.05 * tables


def test_a_crossover_without_resamples_has_no_interval():
    found = crossover(*crossing_arms(1e8), samples=0)
    assert (found.inside, found.bounded, found.low, found.high) == (True, False, 0.0, math.inf)
    assert found.why_unbounded() == "it has no interval without resamples"


@pytest.mark.parametrize(
    "compute, low, high, reason",
    [
        (1e18, 1e17, 1e19, ""),
        (math.inf, 1e18, math.inf, "the curves do not cross within the runs"),
        (0.0, 0.0, 0.0, "the curves do not cross within the runs"),
        (1e18, 0.0, 1e19, "its interval reaches below the runs"),
        (1e18, 1e17, math.inf, "its interval reaches above the runs"),
        (1e18, 0.0, math.inf, "its interval reaches below and above the runs"),
    ],
)
def test_only_crossovers_within_the_runs_make_a_law(compute, low, high, reason):
    one = Crossover(1e8, compute, low, high, 1e16, 1e20, draws=(1e18,))
    assert (one.bounded, one.why_unbounded()) == (not reason, reason)
    other = Crossover(2e8, 1e19, 1e18, 1e20, 1e16, 1e20, draws=(1e19,))
    if reason:
        with pytest.raises(DataError, match="1 points do not determine the exponents of U"):
            critical_compute_law([one, other])
    else:
        assert critical_compute_law([one, other]).exponents["U"].value == pytest.approx(math.log(10) / math.log(2))


def curve(points, unique=1e8):
    """Runs of (log10 compute, loss)."""
    compute, loss = np.array(points, float).T
    size = np.sqrt(10.0**compute / 6)
    return runs_of(size, size, loss, unique)


def test_a_base_whose_loss_has_turned_is_carried_to_the_end_of_the_challenger():
    turned = curve([(17, 4.0), (18, 3.5), (19, 3.8)])
    challenger = curve([(17, 4.5), (18, 4.0), (19, 3.75), (20, 3.5), (21, 3.0)])
    found = crossover(turned, challenger, samples=20)
    assert found.carried
    assert (found.first, found.last) == pytest.approx((1e17, 1e21))
    # The base stays at 3.5, which the challenger reaches at 1e20.
    assert found.compute == pytest.approx(1e20)
    # One seed that is better at the end does not undo the turn if the mean is worse.
    mixed = curve([(17, 4.0), (18, 3.5), (19, 3.4), (19, 3.8)])
    assert crossover(mixed, challenger, samples=0).carried


@pytest.mark.parametrize(
    "base, last",
    [([(17, 4.0), (18, 3.7), (19, 3.5)], 1e19), ([(17, 4.0), (19, 3.5), (21.5, 3.8)], 1e21)],
    ids=["not turned", "reaches further than the challenger"],
)
def test_other_bases_are_compared_only_where_both_have_runs(base, last):
    challenger = curve([(17, 4.5), (19, 3.75), (20, 3.6), (21, 3.55)])
    found = crossover(curve(base), challenger, samples=5)
    assert (found.carried, found.last, found.compute) == (False, pytest.approx(last), math.inf)
