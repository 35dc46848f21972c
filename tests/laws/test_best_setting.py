"""The choice of a cell's setting, on losses whose answer is plain by hand."""

import itertools

import pytest

from card_scale.laws.best_setting import best_setting


@pytest.mark.parametrize(
    "losses, best",
    [
        pytest.param({"a": {"1": 4.0}}, "a", id="one setting"),
        pytest.param({"a": {"1": 4.0}, "b": {"1": 3.9}}, "b", id="one seed"),
        pytest.param({"a": {"1": 4.0, "2": 4.4}, "b": {"1": 4.3, "2": 4.0}}, "b", id="means of 4.2 and 4.15"),
        # Over all seeds b has the mean 3.5 and a 4.0, but its lead is seed 2; on seed 1 a is lower by 0.5.
        pytest.param({"a": {"1": 4.0}, "b": {"1": 4.5, "2": 2.5}}, "a", id="only shared seeds count"),
        pytest.param({"a": {"1": 4.0, "3": 9.0}, "b": {"1": 4.1, "2": 1.0}}, "a", id="on the seed that both have"),
        # c shares no seed with the others, and has one: a and b are compared, on seed 2.
        pytest.param(
            {"a": {"1": 5.0, "2": 4.0}, "b": {"2": 4.1, "3": 1.0}, "c": {"4": 0.5}}, "a", id="those of the most seeds"
        ),
        pytest.param({"a": {"1": 4.0, "2": 4.2}, "b": {"3": 4.3, "4": 3.8}}, "b", id="means where no seed is shared"),
        pytest.param({"a": {"1": 4.0}, "b": {"2": 3.0, "3": 9.0}}, "b", id="one of two seeds before one of one"),
        pytest.param({"b": {"1": 4.0}, "a": {"1": 4.0}}, "b", id="the first of two equal ones"),
        pytest.param({"b": {"1": 4.0}, "a": {"2": 4.0}}, "b", id="the first of two equal means"),
    ],
)
def test_the_best_setting_by_hand(losses, best):
    assert best_setting(losses) == best


def test_the_order_of_settings_and_seeds_decides_nothing_but_ties():
    losses = {(1e-3, 0.1): {"1": 4.0, "2": 4.4}, (1e-3, 0.4): {"2": 4.3, "1": 4.0}, (2e-3, 0.1): {"1": 4.2, "2": 4.3}}
    for order in itertools.permutations(losses):
        assert best_setting({setting: dict(reversed(losses[setting].items())) for setting in order}) == (1e-3, 0.4)
