"""The laws against published values, loops in plain Python and their limits."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from card_scale.laws import formulas as laws
from card_scale.laws.allocation import compute_optimal, data_constrained_optimal
from card_scale.laws.compute import flops
from card_scale.laws.forms import DATA_CONSTRAINED, DECAYING_EXPONENTS, GEOMETRIC
from card_scale.laws.huber import objective, r_squared
from card_scale.laws.published import CONSTANTS, PRABHUDESAI_CRITICAL_COMPUTE
from tests.laws.datablations import BASE, PUBLISHED, published_182, runs

positive = st.floats(0.1, 10.0)


def logs(form, params):
    with np.errstate(divide="ignore"):
        return np.log([params[name] for name in form.constants])


def test_published_losses_of_muennighoff():
    found = laws.data_constrained(PUBLISHED, [6.34e9, 8.67e9], [242e9, 178e9], 25e9)
    np.testing.assert_allclose(found, [2.2256440890, 2.2269634075], atol=5e-11)


def test_published_objective_and_r_squared():
    constants = logs(DATA_CONSTRAINED, PUBLISHED)
    assert objective(DATA_CONSTRAINED, constants, published_182()) == pytest.approx(0.01582593526, abs=1e-11)
    assert r_squared(DATA_CONSTRAINED, constants, published_182()) == pytest.approx(0.7722046085, abs=1e-10)


@pytest.mark.parametrize(
    "form, constants, expected",
    [
        # Printed by the source's notebook for these constants.
        (GEOMETRIC, {"delta_D": 0.010462746, "delta_N": 0.36757502}, 0.7987551952),
        (DATA_CONSTRAINED, {"R_D": 2.9157212, "R_N": math.inf}, 0.7354468935),
        (DATA_CONSTRAINED, {"R_D": math.inf, "R_N": 713.0015}, 0.4487786132),
    ],
)
def test_published_r_squared_of_variants(form, constants, expected):
    assert r_squared(form, logs(form, {**BASE, **constants}), published_182()) == pytest.approx(expected, abs=1e-6)


def test_published_objective_of_decaying_exponents():
    constants = logs(DECAYING_EXPONENTS, {**BASE, "R_D": 26530.611, "R_N": 2040.8163})
    # The source fits 296 runs: those on data as they are, and two of other shapes.
    shapes = [runs(note=note) for note in ("", "alt_shape_opt", "alt_shape_opt2")]
    assert sum(len(part.loss) for part in shapes) == 296
    assert sum(objective(DECAYING_EXPONENTS, constants, part) for part in shapes) == pytest.approx(0.0596, abs=5e-4)


def test_no_decay_is_the_chinchilla_law():
    table = published_182()
    endless = laws.data_constrained({**BASE, "R_D": math.inf, "R_N": math.inf}, table.N, table.D, table.U)
    np.testing.assert_allclose(endless, laws.chinchilla(BASE, table.N, table.D), rtol=1e-13)


def test_nothing_is_gained_by_repetition_when_it_is_worth_nothing():
    once = laws.data_constrained({**BASE, "R_D": 0.0, "R_N": 0.0}, 1e6, 1e8, 1e8)
    often = laws.data_constrained({**BASE, "R_D": 0.0, "R_N": 0.0}, 1e6, 1e10, 1e8)
    assert once == often


@given(st.floats(1.0, 1e4), st.floats(1.0, 1e18))
def test_saturation_keeps_its_digits_for_any_constant(extra, constant):
    # By its series where it is accurate; 1 - exp(-x) would be off by 100 % at x = 1e-17.
    ratio = extra / constant
    expected = extra * (1 - ratio / 2 + ratio**2 / 6) if ratio < 1e-4 else constant * (1 - math.exp(-ratio))
    assert laws.saturating(extra, constant) == pytest.approx(expected, rel=1e-10)


@given(st.integers(1, 60), st.floats(1e-6, 1.0))
def test_geometric_sum_is_the_sum(uses, delta):
    expected = math.fsum((1.0 - delta) ** power for power in range(uses))
    assert laws.geometric_sum(float(uses), delta) == pytest.approx(expected, rel=1e-9)


@given(positive, positive, st.floats(0.2, 0.6), st.floats(0.2, 0.6), st.floats(1e18, 1e24))
def test_compute_optimum_beats_its_neighbours(a, b, alpha, beta, budget):
    params = {"A": 500.0 * a, "B": 1500.0 * b, "E": 1.7, "alpha": alpha, "beta": beta}
    best = compute_optimal(params, budget)
    assert flops(best.parameters, best.tokens) == pytest.approx(budget, rel=1e-12)
    for factor in (0.9, 1.1):
        assert laws.chinchilla(params, best.parameters * factor, best.tokens / factor) > best.loss
    # And N_opt(U) names the same frontier by its tokens.
    assert laws.optimal_parameters(params, best.tokens) == pytest.approx(best.parameters, rel=1e-9)


def test_optimum_on_limited_data_is_the_published_one():
    best = data_constrained_optimal(PUBLISHED, 1e22, 25e9)
    assert best.parameters == pytest.approx(7.02e9, rel=2e-3)
    assert best.tokens == pytest.approx(237.3e9, rel=2e-3)
    assert best.tokens / 25e9 == pytest.approx(9.49, abs=0.01)


def test_optimum_on_plenty_of_data_is_chinchillas():
    free, limited = compute_optimal(BASE, 1e20), data_constrained_optimal(PUBLISHED, 1e20, 1e15)
    assert limited.parameters == pytest.approx(free.parameters, rel=1e-4)
    assert limited.loss == pytest.approx(free.loss, rel=1e-10)


@pytest.mark.parametrize(
    "law, constants",
    [
        (laws.data_constrained, PUBLISHED),
        (laws.geometric_decay, BASE | {"delta_D": 0.1, "delta_N": 0.2}),
        (laws.decaying_exponents, PUBLISHED),
        (laws.practical, dict(E=1.5, a=2.0, alpha=0.5, b=3.0, beta=0.25, c=4.0, gamma=0.5, delta=0.5, L0=10.0)),
    ],
)
def test_of_more_tokens_than_are_processed_a_run_sees_as_many_as_it_processes(law, constants):
    tokens = np.array([1e8, 1e9, 1e10])
    np.testing.assert_allclose(law(constants, 3e8, tokens, 1e12), law(constants, 3e8, tokens, tokens), rtol=1e-14)
    if law is laws.data_constrained:
        # Not more parameters than these tokens fill: once through, Chinchilla's law.
        few = laws.optimal_parameters(BASE, tokens) / 2
        np.testing.assert_allclose(law(constants, few, tokens, 1e12), laws.chinchilla(BASE, few, tokens), rtol=1e-12)


def test_practical_law_by_hand():
    params = dict(E=1.5, a=2.0, alpha=0.5, b=3.0, beta=0.25, c=4.0, gamma=0.5, delta=0.5, L0=10.0)
    h = 2.0 / 10.0 + 3.0 / 10.0 + 4.0 * 10.0 / 50.0
    assert laws.practical(params, 100.0, 1e4, 2500.0) == pytest.approx(1.5 + 8.5 * h / (1 + h), rel=1e-14)


def test_practical_law_lets_more_parameters_hurt_and_stays_below_the_uninformed_loss():
    params = dict(E=1.5, a=100.0, alpha=0.4, b=1e3, beta=0.4, c=1e-3, gamma=1.0, delta=0.8, L0=10.0)
    losses = laws.practical(params, np.logspace(5, 14, 50), 1e9, 1e8)
    assert losses.argmin() not in (0, 49)
    assert losses.max() < 10.0


def test_critical_compute_as_published():
    expected = [2.3e18, 1.05e19, 4.75e19, 7.1e21, 1.05e24]
    found = laws.critical_compute(PRABHUDESAI_CRITICAL_COMPUTE, [25e6, 50e6, 100e6, 1e9, 10e9])
    np.testing.assert_allclose(found, expected, rtol=0.03)


def test_optimal_epochs_by_hand():
    assert laws.optimal_epochs({"k": 2.0, "by_U": 0.5, "by_N": -0.5}, 100.0, 10000.0) == pytest.approx(20.0)


def test_published_chinchilla_constants_give_the_published_exponent():
    epoch = CONSTANTS["epoch"]
    assert epoch["beta"] / (epoch["alpha"] + epoch["beta"]) == pytest.approx(0.513, abs=0.001)
