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
    assert rests(Pace(0.05, 0.25), tokens=2, passes=500) == []


def test_drafts_that_win_nothing_are_tried_more_and_more_rarely():
    found = rests(Pace(0.05, 0.25), tokens=1, passes=2000)
    doubled = [SHORTEST_REST * 2**number for number in range(20)]
    assert found[:-1] == [min(length, LONGEST_REST) for length in doubled][: len(found) - 1]
    assert found[-2] == LONGEST_REST


def test_tries_take_a_small_part_of_the_time():
    pace, tried = Pace(0.05, 0.25), 0
    for _ in range(2000):
        tried += not pace.is_resting
        pace.passed(1 if pace.is_resting else 6, 1)
    assert 0 < tried / 2000 < 0.05


def test_a_success_makes_the_next_rest_short_again():
    pace = Pace(0.05, 0.25)
    rests(pace, tokens=1, passes=500)
    while pace.is_resting:
        pace.passed(1, 1)
    assert rests(pace, tokens=3, passes=50) == []
    assert rests(pace, tokens=1, passes=100)[0] == SHORTEST_REST


def test_an_input_of_every_sequence_is_a_larger_share_of_a_larger_pass():
    pace = Pace(0.05, 0.25)
    alone = pace.price(5)
    assert alone == pytest.approx(1 + 0.25 + 4 * 0.05)
    pace.sequences = 9
    assert pace.price(1) == 1
    assert pace.price(5) == pytest.approx(1 + (0.25 + 4 * 9 * 0.05) / (1 + 8 * 0.05))


def test_drafts_are_tried_anew_after_a_rest_and_where_none_were_made_for_long():
    pace = Pace(0.05, 0.25)
    while not pace.is_resting:
        assert not pace.passed(6, 1)
    assert [pace.passed(1, 1) for _ in range(SHORTEST_REST)] == [False] * (SHORTEST_REST - 1) + [True]
    fresh = Pace(0.05, 0.25)
    assert [number for number in range(1, 300) if fresh.passed(1, 1)] == [LONGEST_REST, 2 * LONGEST_REST]


def test_what_costs_nothing_is_never_given_up():
    pace = Pace(0.0)
    assert rests(pace, tokens=1, passes=200) == []
    assert (pace.price(1), pace.price(50), pace.input_price) == (1.0, 1.0, 0.0)


def test_an_input_is_dearer_where_time_wins_more():
    slow, quick = Pace(0.05), Pace(0.05)
    for _ in range(200):
        slow.passed(1, 1)
        quick.passed(5, 3)
    assert slow.input_price == pytest.approx(0.05, rel=1e-3)
    assert quick.input_price == pytest.approx(0.05 * 3 / 1.2, rel=1e-3)
