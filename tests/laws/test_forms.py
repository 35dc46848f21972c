"""Slopes of every form against differences of the law, and its linear part against the law itself."""

import numpy as np
import pytest

from card_scale.laws.descent import free_indices
from card_scale.laws.forms import FORMS
from card_scale.laws.huber import constants_at, huber, influence, jacobian, residuals
from card_scale.laws.starts import random_starts, solve_linear
from tests.laws.datablations import published_182

VALUES = {
    "A": 500.0,
    "B": 1500.0,
    "E": 1.8,
    "alpha": 0.35,
    "beta": 0.33,
    "R_D": 15.0,
    "R_N": 5.0,
    "delta_D": 0.02,
    "delta_N": 0.3,
    "a": 5.0,
    "b": 20.0,
    "c": 1e-3,
    "gamma": 0.9,
    "delta": 0.8,
    "L0": 10.8,
}


def logs_of(form):
    values = VALUES | ({"R_D": 5000.0, "R_N": 800.0} if form.name == "decaying-exponents" else {})
    return np.log([values[name] for name in form.constants])


@pytest.fixture(params=FORMS.values(), ids=FORMS)
def form(request):
    return request.param


def test_slopes_are_the_derivatives(form):
    runs, logs = published_182(), logs_of(form)
    free = free_indices(form, form.given)
    found = jacobian(form, logs, runs, free)
    for column, place in enumerate(free):
        step = np.zeros_like(logs)
        step[place] = 1e-6
        difference = (residuals(form, logs + step, runs) - residuals(form, logs - step, runs)) / 2e-6
        np.testing.assert_allclose(found[:, column], difference, atol=1e-7 * np.abs(difference).max())


def test_many_sets_of_constants_at_once(form):
    runs, logs = published_182(), logs_of(form)
    both = np.stack([logs, logs + 0.01])
    free = free_indices(form, form.given)
    for row in range(2):
        np.testing.assert_array_equal(residuals(form, both, runs)[row], residuals(form, both[row], runs))
        np.testing.assert_array_equal(jacobian(form, both, runs, free)[row], jacobian(form, both[row], runs, free))


def test_linear_constants_are_solved_for(form):
    runs, logs = published_182(), logs_of(form)
    exact = runs._replace(loss=form.law(constants_at(form, logs), runs))
    # All three wrong by one factor: A / B, and with it U_N, stays.
    wrong = np.array(logs)
    wrong[[form.constants.index(name) for name in form.linear]] += 0.7
    np.testing.assert_allclose(solve_linear(form, wrong, exact, form.linear), logs, atol=1e-6)


def test_starts_are_finite_within_bounds_and_reproducible(form):
    runs = published_182()
    fixed = {"L0": 10.8} if form.given else {"alpha": 0.3, "A": 400.0}
    starts = random_starts(form, runs, fixed, 5, 3)
    np.testing.assert_array_equal(starts, random_starts(form, runs, fixed, 5, 3))
    for place, name in enumerate(form.constants):
        if name in fixed:
            np.testing.assert_allclose(starts[:, place], np.log(fixed[name]))
        else:
            low, high = np.log(form.bounds[name])
            assert (starts[:, place] >= low).all()
            assert (starts[:, place] <= high).all()


def test_huber_is_quadratic_then_linear_and_smooth():
    np.testing.assert_allclose(huber(np.array([0.0, 5e-4, -1e-3, 3e-3])), [0.0, 1.25e-7, 5e-7, 2.5e-6], rtol=1e-12)
    points = np.linspace(-3e-3, 3e-3, 41)
    difference = (huber(points + 1e-9) - huber(points - 1e-9)) / 2e-9
    np.testing.assert_allclose(influence(points), difference, atol=1e-9)


def test_every_constant_that_may_be_fitted_has_a_kind(form):
    widest = {name: kind.widest for name, kind in form.kinds.items()}
    narrow = {"E": 1.25, "alpha": 2.0, "beta": 2.0, "gamma": 2.0, "delta": 2.0}
    assert widest == {name: narrow.get(name, 10.0) for name in form.constants if name not in form.given}
