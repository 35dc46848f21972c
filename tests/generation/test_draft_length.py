"""Which drafts are made and checked follows what they were worth."""

from hypothesis import given
from hypothesis import strategies as st

from card_scale.generation.copies import LONGEST, SHORTEST, Copies
from card_scale.generation.draft_length import DraftLength, Other
from card_scale.generation.pace import Pace


class Policy(DraftLength):
    """With the pace of one sequence, which has no pass behind it."""

    def __init__(self, most, copies, input_cost, candidates=1, pass_cost=0.0):
        super().__init__(most, copies, candidates)
        self.pace = Pace(input_cost, pass_cost)
        self.pace._tokens = self.pace._time  # a token is worth a pass

    def worth_checking(self, drafts):
        return super().worth_checking(drafts, self.pace)

    def masks(self, drafts):
        return super().masks(drafts, self.pace)


def predicted(policy, *probabilities):
    return policy.predicted([7] * len(probabilities), probabilities, [[]] * len(probabilities))


def taught(cost, right, probabilities, times=200):
    policy = Policy(4, 8, cost)
    for _ in range(times):
        policy.observe(right, predicted(policy, *probabilities), 9)
    return policy


def test_inputs_that_cost_nothing_are_all_taken():
    policy = taught(0.0, 0, [0.01, 0.01, 0.01, 0.01])
    drafts = predicted(policy, *[0.001] * 4) + policy.copied([1, 2, 3], 2)
    assert policy.worth_checking(drafts) == 7
    assert policy.masks(drafts) == ([4] * 8, [])


def test_drafts_that_are_never_right_are_not_made():
    policy = taught(0.05, 0, [0.3])
    assert policy.worth_checking(predicted(policy, 0.3, 0.3)) == 0
    assert policy.masks([]) == ([0], [])
    assert policy.masks(predicted(policy, 0.3)) == ([0, 0], [])


def test_drafts_that_are_always_right_are_all_made():
    policy = taught(0.05, 4, [0.9] * 4)
    assert policy.worth_checking(predicted(policy, *[0.9] * 4)) == 4
    # The place behind all of them is where the next pass goes on; the others are not reached.
    assert policy.masks(predicted(policy, *[0.9] * 4)) == ([0, 0, 0, 0, 4], [])


def test_only_drafts_of_the_same_confidence_are_learnt_about():
    policy = taught(0.05, 0, [0.3])
    assert policy.worth_checking(predicted(policy, 0.9)) == 1
    assert policy.worth_checking(policy.copied([5], 3)) == 1
    policy = taught(0.05, 1, [0.3])
    assert policy.worth_checking(predicted(policy, 0.35, 0.31)) == 2


def test_a_draft_behind_an_unlikely_one_is_not_checked():
    policy = Policy(4, 8, 0.1)
    # Untaught, a probability is taken at its word: 0.44 x 0.44 is below twice the cost.
    assert policy.worth_checking(predicted(policy, 0.4, 0.4, 0.9)) == 1
    assert policy.worth_checking(predicted(policy, 0.9, 0.9, 0.9)) == 3


def test_what_follows_a_wrong_draft_says_nothing():
    policy = Policy(4, 8, 0.1)
    before = policy.masks([])
    for _ in range(100):
        policy.observe(0, predicted(policy, 0.1, 0.9, 0.9), 9)
    assert policy.worth_checking(predicted(policy, 0.9)) == 1
    assert policy.masks([]) < before


def test_copies_are_learnt_about_by_the_length_of_their_match():
    policy = Policy(4, 8, 0.1)
    for _ in range(100):
        policy.observe(0, policy.copied([5, 6], 2), 9)
        policy.observe(2, policy.copied([5, 6], 4), 9)
    assert policy.worth_checking(policy.copied([5, 6], 2)) == 0
    assert policy.worth_checking(policy.copied([5, 6], 4)) == 2
    assert policy.masks([]) == Policy(4, 8, 0.1).masks([]), "copies say nothing of masks"


def with_others(policy, probability, *others):
    return policy.predicted([7], [probability], [list(others)])


def test_other_candidates_are_considered_where_they_are_likely_enough():
    policy = Policy(4, 8, 0.08, candidates=3)
    # Untaught: wrong with 0.44 (the bucket's), another one right in a fifth of these cases.
    masks, others = policy.masks(with_others(policy, 0.6, 8, 9))
    assert others == [Other(0, 8, 0), Other(0, 9, 0)]
    assert masks == [1, 4]
    assert policy.masks(with_others(policy, 0.9, 8, 9))[1] == []
    free = Policy(4, 8, 0.0, candidates=2)
    assert free.masks(with_others(free, 0.99, 8)) == ([4, 4], [Other(0, 8, 4)])


def test_how_often_another_candidate_was_right_is_learnt_by_its_rank():
    policy = Policy(4, 8, 0.1, candidates=3)
    for _ in range(100):
        policy.observe(0, with_others(policy, 0.3, 8, 9), 9)
    assert [other.token for other in policy.masks(with_others(policy, 0.3, 8, 9))[1]] == [9]
    for _ in range(100):
        policy.observe(1, with_others(policy, 0.3, 8, 9), 9)
    assert policy.masks(with_others(policy, 0.9, 8, 9))[1] == [], "a right draft leaves nothing to others"


def test_candidates_that_are_forbidden_are_none():
    policy = Policy(4, 8, 0.0, candidates=4)
    assert with_others(policy, 0.3, 8, -1, -1)[0].others == (8,)


def resting(**arguments):
    """A policy whose masks have won nothing."""
    policy = Policy(4, 8, **arguments)
    while not policy.pace.is_resting:
        policy.pace.passed(9, 1)
    return policy


def test_a_rest_makes_no_masks_and_checks_what_pays_for_the_pass():
    policy = resting(input_cost=0.05, pass_cost=1.5)
    assert policy.masks([]) == ([0], [])
    # Untaught copies are right three times of four: 0.75 + 0.56 + 0.42 for 1.65 of a pass.
    assert policy.worth_checking(policy.copied([5, 6, 7], 3)) == 3
    assert policy.worth_checking(policy.copied([5], 3)) == 0
    assert policy.masks(policy.copied([5, 6, 7], 3)) == ([0, 0, 0, 0], [])


def test_a_rest_considers_no_other_candidates():
    policy = resting(input_cost=0.001, pass_cost=9.0, candidates=3)
    assert policy.masks(with_others(policy, 0.3, 8, 9)) == ([0, 0], [])


def test_what_speaks_against_trying_is_forgotten_when_it_is_time():
    policy = taught(0.05, 0, [0.3])
    for _ in range(100):
        policy.observe(0, policy.copied([5, 6], 2), 9)
    assert policy.masks([]) == ([0], [])
    assert policy.worth_checking(policy.copied([5], 2)) == 0
    policy.try_anew()
    assert policy.masks([]) == Policy(4, 8, 0.05).masks([]) != ([0], [])
    assert policy.worth_checking(policy.copied([5], 2)) == 1
    right = taught(0.05, 4, [0.9] * 4)
    before = right.masks([])
    right.try_anew()
    assert right.masks([]) == before, "what speaks for it stays"


def copied_by_search(tokens, context, most):
    """The same by looking at every place."""
    for length in range(min(LONGEST, len(context)), SHORTEST - 1, -1):
        for end in range(len(tokens) - 1, length - 1, -1):
            if tokens[end - length : end] == context[-length:]:
                grown = list(tokens)
                while len(grown) < end + most:
                    grown.append(grown[len(grown) - len(tokens) + end])
                return grown[end : end + most], length
    return [], 0


@given(st.lists(st.integers(0, 2), max_size=30), st.lists(st.integers(0, 2), max_size=3), st.integers(1, 9), st.data())
def test_copies_equal_a_search_through_the_text(tokens, drafts, most, data):
    known = Copies()
    for length in sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=4))):
        known.learn(tokens[:length])
    known.learn(tokens)
    assert known.after(tokens + drafts, tokens, most) == copied_by_search(tokens, tokens + drafts, most)
