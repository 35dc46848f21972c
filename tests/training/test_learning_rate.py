"""Learning-rate schedules at their pinned points."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from card_scale.config import SCHEDULES
from card_scale.errors import ConfigurationError
from card_scale.training.learning_rate import decay_start, learning_rate


def rates(schedule, warmup=10, total=110, lr=1.0, min_lr=0.1):
    return [
        learning_rate(step, schedule=schedule, lr=lr, min_lr=min_lr, warmup_steps=warmup, total_steps=total)
        for step in range(total + 2)
    ]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_is_linear_and_skips_zero(schedule):
    assert rates(schedule)[:11] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0])
    assert rates(schedule, warmup=0)[0] == 1.0


def test_cosine():
    values = rates("cosine")
    assert values[10] == 1.0
    assert values[60] == pytest.approx(0.55)
    assert values[35] == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)
    assert values[110] == values[111] == 0.1
    assert 0.1 < values[109] < 0.101


def test_wsd_is_flat_then_falls_as_one_minus_root():
    values = rates("wsd")  # the last fifth of 110 updates: from 88 on
    assert values[10:89] == [1.0] * 79
    assert values[88 + 22 // 2] == pytest.approx(0.1 + 0.9 * (1 - math.sqrt(0.5)))
    assert values[110] == 0.1
    assert rates("wsd", warmup=100)[99:101] == [1.0, 1.0]
    assert rates("wsd", warmup=100)[105] == pytest.approx(0.1 + 0.9 * (1 - math.sqrt(0.5)))


@pytest.mark.parametrize(
    "total, warmup, start", [(8, 0, 6), (108, 0, 86), (12, 0, 10), (1, 0, 1), (110, 10, 88), (110, 100, 100), (8, 9, 8)]
)
def test_the_decay_takes_a_fifth_to_the_nearest_update(total, warmup, start):
    assert decay_start(total, warmup) == start


def test_a_trunk_at_constant_rate_is_the_schedule_up_to_its_decay():
    for total in range(1, 301):
        for warmup in {0, 1, total // 2, total - 1, total, total + 5}:
            start = decay_start(total, warmup)
            wsd, constant = (rates(schedule, warmup, total)[:total] for schedule in ("wsd", "constant"))
            assert wsd[:start] == constant[:start]
            # Nor could the trunk go on: at the first update of the decay the rates are equal still, then they part.
            assert all(falling < flat for falling, flat in zip(wsd[start + 1 :], constant[start + 1 :], strict=True))


def test_constant():
    assert rates("constant")[9:] == [1.0] * 103


@given(
    st.sampled_from(SCHEDULES),
    st.integers(0, 40),
    st.integers(1, 60),
    st.floats(1e-6, 1.0),
    st.floats(0.0, 1.0),
)
def test_bounded_and_never_rising_after_warm_up(schedule, warmup, total, lr, share):
    values = rates(schedule, warmup, total, lr, lr * share)
    after = values[warmup:total]
    assert all(earlier >= later for earlier, later in itertools.pairwise(after))
    assert all(lr * share * (1 - 1e-9) <= value <= lr for value in after)
    assert all(0 < value <= lr for value in values[: min(warmup, total)])


def test_unknown_schedule():
    with pytest.raises(ConfigurationError, match=r"optimizer\.schedule is 'linear'; valid are cosine, wsd, constant"):
        rates("linear")
