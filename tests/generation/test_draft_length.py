"""How many drafts are made and checked follows what they were worth."""

from card_scale.generation.draft_length import DraftLength


def taught(cost, right, probabilities, times=200):
    policy = DraftLength(4, cost)
    for _ in range(times):
        policy.observe(right, probabilities)
    return policy


def test_inputs_that_cost_nothing_are_all_taken():
    policy = taught(0.0, 0, [0.01, 0.01, 0.01, 0.01])
    assert policy.worth_checking([0.001] * 4) == 4
    assert policy.masks([0.001] * 4) == [4] * 5


def test_drafts_that_are_never_right_are_not_made():
    policy = taught(0.05, 0, [0.3])
    assert policy.worth_checking([0.3, 0.3]) == 0
    assert policy.masks([]) == [0]
    assert policy.masks([0.3]) == [0, 0]


def test_drafts_that_are_always_right_are_all_made():
    policy = taught(0.05, 4, [0.9] * 4)
    assert policy.worth_checking([0.9] * 4) == 4
    # The place behind all of them is where the next pass goes on; the others are not reached.
    assert policy.masks([0.9] * 4) == [0, 0, 0, 0, 4]


def test_only_drafts_of_the_same_confidence_are_learnt_about():
    policy = taught(0.05, 0, [0.3])
    assert policy.worth_checking([0.9]) == 1
    assert taught(0.05, 1, [0.3]).worth_checking([0.35, 0.31]) == 2


def test_a_draft_behind_an_unlikely_one_is_not_checked():
    policy = DraftLength(4, 0.1)
    # Untaught, a probability is taken at its word: 0.44 x 0.44 is below twice the cost.
    assert policy.worth_checking([0.4, 0.4, 0.9]) == 1
    assert policy.worth_checking([0.9, 0.9, 0.9]) == 3


def test_what_follows_a_wrong_draft_says_nothing():
    policy = DraftLength(4, 0.1)
    before = policy.masks([])
    for _ in range(100):
        policy.observe(0, [0.1, 0.9, 0.9])
    assert policy.worth_checking([0.9]) == 1
    assert policy.masks([]) < before
