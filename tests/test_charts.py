"""Ticks that can be read and names that do not overlap."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from card_scale import charts

PLACES = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12)


@given(PLACES, st.floats(0.01, 0.3))
def test_names_keep_their_order_and_distance(wanted, distance):
    found = charts.spread(wanted, distance)
    apart = min(distance, 1.0 / max(1, len(wanted) - 1))
    placed = sorted(found)
    assert all(after - before >= apart - 1e-9 for before, after in itertools.pairwise(placed))
    assert all(-1e-9 <= place <= 1.0 + 1e-9 for place in found)
    order = sorted(range(len(wanted)), key=lambda number: wanted[number])
    assert [found[number] for number in order] == placed


def test_names_that_do_not_touch_stay_where_they_belong():
    assert charts.spread([0.9, 0.1, 0.5], 0.1) == [0.9, 0.1, 0.5]
    assert charts.spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])


@given(st.floats(1e-6, 1e24), st.floats(1.05, 1e12))
def test_ticks_are_few_and_inside(low, factor):
    ticks = charts.ticks_between(low, low * factor)
    assert 1 <= len(ticks) <= 5
    assert ticks == sorted(set(ticks))
    assert all(low * 0.99 <= tick <= low * factor * 1.01 for tick in ticks)
    assert len({charts.number_text(tick) for tick in ticks}) == len(ticks)


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (3e9, 4e13, [1e10, 1e11, 1e12, 1e13]),
        (1.0, 64.0, [1, 3, 10, 30]),
        (1e-4, 1e9, [1e-4, 1.0, 1e4, 1e8]),
        (1.7, 1.9, [1.7, 1.8, 1.9]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert charts.ticks_between(low, high) == pytest.approx(expected)


def test_epochs_read_as_numbers_and_powers_as_powers():
    _, (axis,) = charts.new_axes(1)
    axis.plot([1, 2, 4, 64], [1, 2, 3, 4])
    charts.value_ticks(axis.xaxis, [1, 2, 4, 64])
    assert [text.get_text() for text in axis.get_xticklabels()] == ["1", "2", "4", "64"]
    assert [charts.number_text(value) for value in (0.5, 3000, 1e12, 2e9)] == [
        "0.5",
        "3,000",
        "$10^{12}$",
        r"$2\times10^{9}$",
    ]
    charts.log_ticks(axis.yaxis)
    assert math.isclose(axis.get_yticks()[0], 1.0)


def test_the_front_is_what_no_other_beats():
    points = [(0.3, 1.5, "a"), (0.0, 1.2, "b"), (0.1, 1.1, "c"), (0.3, 1.6, "d"), (0.4, 1.6, "e"), (0.5, 1.9, "f")]
    assert [name for _, _, name in charts.front(points, lambda point: (point[0], -point[1]))] == ["b", "d", "f"]
    assert charts.front([], lambda point: point) == []
