"""Medians, quartiles and paired ratios, against sorting by hand."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from card_scale.benchmark.measurement import order
from card_scale.benchmark.statistics import paired_ratio, summarise

SECONDS = st.floats(1e-6, 1e3)


def quantile(samples: list[float], share: float) -> float:
    """Return the quantile by linear interpolation between the sorted samples."""
    ordered = sorted(samples)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


@given(st.lists(SECONDS, min_size=1, max_size=40))
def test_median_and_quartiles(samples):
    expected = [quantile(samples, share) for share in (0.5, 0.25, 0.75)]
    assert summarise(samples) == pytest.approx(expected, rel=1e-12)


@given(st.lists(st.tuples(SECONDS, SECONDS, SECONDS, SECONDS), min_size=1, max_size=20))
def test_the_ratio_is_the_median_over_rounds(rounds):
    expected = statistics.median(statistics.median([a, b]) / statistics.median([c, d]) for a, b, c, d in rounds)
    ratio = paired_ratio([[a, b] for a, b, _, _ in rounds], [[c, d] for _, _, c, d in rounds])
    assert ratio.median == pytest.approx(expected, rel=1e-12)
    assert ratio.low <= ratio.median * (1 + 1e-12)
    assert ratio.high >= ratio.median * (1 - 1e-12)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    generator, covered = np.random.default_rng(1), 0
    for _ in range(200):
        base = generator.uniform(0.5, 1.5, 40)
        ratio = paired_ratio((base * generator.normal(1.3, 0.05, 40))[:, None].tolist(), base[:, None].tolist())
        covered += ratio.low <= 1.3 <= ratio.high
    assert 0.88 <= covered / 200 <= 0.99


def test_the_ratio_of_a_round_is_that_of_its_medians():
    # One step in four was disturbed: the mean of the first round is 2.75 times, its median 1.5 times that of the base.
    ratio = paired_ratio([[1.0, 2.0, 1.0, 7.0]], [[1.0, 1.0, 1.0, 1.0]])
    assert ratio == pytest.approx((1.5, 1.5, 1.5))
    ratio = paired_ratio([[3.0, 3.0, 3.0, 3.0]], [[2.0, 1.0, 90.0, 1.0]])
    assert ratio == pytest.approx((2.0, 2.0, 2.0))


def test_a_slow_drift_of_the_machine_cancels():
    speeds = [1.0 + 0.05 * number for number in range(30)]
    ratio = paired_ratio([[2.0 * speed] for speed in speeds], [[speed] for speed in speeds])
    assert ratio == pytest.approx((2.0, 2.0, 2.0))


@given(st.integers(1, 9))
def test_no_arm_keeps_its_place_or_its_predecessor(count):
    orders = [order(count, number) for number in range(2 * count)]
    for taken in orders:
        assert sorted(taken) == list(range(count))
    for arm in range(count):
        # Over a full rotation every arm stands equally often at every place.
        assert sorted(taken.index(arm) for taken in orders) == sorted(list(range(count)) * 2)
    if count > 2:
        predecessors = {taken[taken.index(0) - 1] for taken in orders if taken.index(0)}
        assert len(predecessors) > 1
