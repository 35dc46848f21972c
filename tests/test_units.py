"""Counts and times as people read them."""

import pytest

from card_scale.units import duration, short


@pytest.mark.parametrize(
    "seconds, said",
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3599, "59 min 59 s"), (3600, "1 h 00 min")]
    + [(86399, "23 h 59 min"), (90000, "1 d 1 h"), (-1, "0 s")],
)
def test_durations(seconds, said):
    assert duration(seconds) == said


@pytest.mark.parametrize("count, text", [(999.4, "999"), (999_900, "1M"), (1_234, "1.23K"), (999_999_744, "1B")])
def test_counts_have_three_digits(count, text):
    assert short(count) == text
