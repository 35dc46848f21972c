"""When drafts are given up for a while, and when they are tried again."""

from itertools import groupby

import pytest

from card_scale.generation.pace import LONGEST_REST, SHORTEST_REST, Pace


def rests(pace, tokens, passes, inputs=6):
    """Return the lengths of the rests within so many passes, of which each with drafts decides ``tokens`` tokens."""
    seen = []
    for _ in range(passes):
        seen.append(pace.is_resting)
        pace.passed(1 if seen[-1] else inputs, 1 if seen[-1] else tokens)
    return [len(list(group)) for resting, group in groupby(seen) if resting]


def test_drafts_that_win_more_than_they_cost_are_never_given_up():
    assert rests(Pace(0.05, 0.25, 1), tokens=2, passes=500) == []


def test_drafts_that_win_nothing_are_tried_more_and_more_rarely():
    found = rests(Pace(0.05, 0.25, 1), tokens=1, passes=2000)
    doubled = [SHORTEST_REST * 2**number for number in range(20)]
    assert found[:-1] == [min(length, LONGEST_REST) for length in doubled][: len(found) - 1]
    assert found[-2] == LONGEST_REST


def test_tries_take_a_small_part_of_the_time():
    pace, tried = Pace(0.05, 0.25, 1), 0
    for _ in range(2000):
        tried += not pace.is_resting
        pace.passed(1 if pace.is_resting else 6, 1)
    assert 0 < tried / 2000 < 0.05


def test_a_success_makes_the_next_rest_short_again():
    pace = Pace(0.05, 0.25, 1)
    rests(pace, tokens=1, passes=500)
    while pace.is_resting:
        pace.passed(1, 1)
    assert rests(pace, tokens=3, passes=50) == []
    assert rests(pace, tokens=1, passes=100)[0] == SHORTEST_REST


@pytest.mark.parametrize("sequences", [1, 8])
def test_a_rest_is_as_long_for_each_sequence_of_a_batch(sequences):
    pace = Pace(0.05, 0.25, sequences)
    assert rests(pace, tokens=1, passes=100 * sequences)[0] == SHORTEST_REST * sequences


def test_what_costs_nothing_is_never_given_up():
    pace = Pace(0.0, 0.0, 1)
    assert rests(pace, tokens=1, passes=200) == []
    assert (pace.price(1), pace.price(50), pace.input_price) == (1.0, 1.0, 0.0)


def test_an_input_is_dearer_where_time_wins_more():
    slow, quick = Pace(0.05, 0.0, 1), Pace(0.05, 0.0, 1)
    for _ in range(200):
        slow.passed(1, 1)
        quick.passed(5, 3)
    assert slow.input_price == pytest.approx(0.05, rel=1e-3)
    assert quick.input_price == pytest.approx(0.05 * 3 / 1.2, rel=1e-3)
