"""Which drafts to make and to check: what drafts were worth so far against what more inputs of a pass cost."""

from collections.abc import Sequence
from typing import NamedTuple

from card_scale.generation.copies import LONGEST, SHORTEST
from card_scale.generation.pace import Pace

DECAY = 0.98
"""Weight of an old observation after each new one."""
PRIOR = 4.0
"""Observations that a first estimate is worth."""
BUCKETS = 8
"""Of the model's own probability of a draft, in which it is counted how often such drafts are right."""
UNCHECKED = 0.75
"""First estimate for what has no probability, the drafts at each place and copies: hopeful, or none were ever tried."""
SECOND = 0.2
"""First estimate of how often another candidate is right where the draft is wrong."""


class Share:
    """An estimate of how often something happens."""

    def __init__(self, first: float):
        self._first = first
        self.forget()

    def forget(self) -> None:
        """Go back to the first estimate."""
        self._tried, self._happened = PRIOR, PRIOR * self._first

    def observe(self, happened: bool) -> None:
        """It did, or did not, happen once more."""
        self._tried = DECAY * self._tried + 1
        self._happened = DECAY * self._happened + happened

    @property
    def value(self) -> float:
        """The estimate."""
        return self._happened / self._tried


class Draft(NamedTuple):
    """A token that may come, and how often such drafts were right."""

    token: int
    share: Share
    is_copy: bool
    others: tuple[int, ...] = ()
    """What may come in its place, the most likely first."""


class Other(NamedTuple):
    """A token that is considered in the place of a draft."""

    place: int
    """Number of drafts that must be right before it."""
    token: int
    masks: int
    """To put behind it."""


class DraftLength:
    """Decides which drafts are checked, and how many masks stand behind each number of right ones.

    An input is worth its place where the token that it may win is more likely than its price, for itself and as much
    for the input that has to check or to go on with it. Sequences of a batch share what is learnt; each has its pace.

    Args:
        most: drafts to make at most by masks, at each place.
        copies: drafts to make at most by copying.
        candidates: tokens to consider at most for a place that masks have drafted.
    """

    def __init__(self, most: int, copies: int, candidates: int = 1):
        self.most, self.copies, self.candidates = most, copies, candidates
        self._by_place = [Share(UNCHECKED) for _ in range(most)]
        self._by_probability = [Share((bucket + 0.5) / BUCKETS) for bucket in range(BUCKETS)]
        self._by_rank = [[Share(SECOND) for _ in range(candidates - 1)] for _ in range(most)]
        self._by_match = {length: Share(UNCHECKED) for length in range(SHORTEST, LONGEST + 1)}

    def predicted(
        self, tokens: Sequence[int], probabilities: Sequence[float], others: Sequence[Sequence[int]]
    ) -> list[Draft]:
        """Drafts that masks have made, by the model's own probabilities, with what else may come at each place."""
        buckets = [min(int(probability * BUCKETS), BUCKETS - 1) for probability in probabilities]
        return [
            Draft(token, self._by_probability[bucket], False, tuple(one for one in next_best if one >= 0))
            for token, bucket, next_best in zip(tokens, buckets, others, strict=True)
        ]

    def copied(self, tokens: Sequence[int], match: int) -> list[Draft]:
        """Drafts that followed ``match`` equal tokens before."""
        return [Draft(token, self._by_match[match], True) for token in tokens]

    def observe(self, right: int, drafts: Sequence[Draft], instead: int) -> None:
        """The first ``right`` of the checked drafts were right, the next token is ``instead``; what was drafted behind
        a wrong one says nothing."""
        if right < min(len(drafts), self.most):
            for token, share in zip(drafts[right].others, self._by_rank[right], strict=False):
                share.observe(token == instead)
        for number, draft in enumerate(drafts[: right + 1]):
            draft.share.observe(number < right)
            if number < self.most and not draft.is_copy:
                self._by_place[number].observe(number < right)

    def try_anew(self) -> None:
        """Forget what speaks against trying what has no probability: it may have been of another text."""
        for share in (*self._by_place, *self._by_match.values()):
            if share.value < UNCHECKED:
                share.forget()

    def worth_checking(self, drafts: Sequence[Draft], pace: Pace) -> int:
        """Return how many of the drafts, from the first, are worth being checked."""
        if pace.is_resting:
            return self._worth_a_break(drafts, pace)
        likely = 1.0
        for number, draft in enumerate(drafts):
            likely *= draft.share.value
            if likely < pace.input_price * (1 if draft.is_copy else 2):
                return number
        return len(drafts)

    def masks(self, drafts: Sequence[Draft], pace: Pace) -> tuple[list[int], list[Other]]:
        """Return (how many masks to put behind 0, 1, ... right ones of the checked drafts; the other candidates that
        are worth being checked too)."""
        if pace.is_resting:
            return [0] * (len(drafts) + 1), []
        found, others, before = list[int](), list[Other](), 1.0
        for place in range(len(drafts) + 1):
            next_right = drafts[place].share.value if place < len(drafts) else 0.0
            ends_here = before * (1.0 - next_right)
            shares = self._by_rank[place] if place < min(len(drafts), self.most) else []
            is_another = 0.0
            for token, share in zip(drafts[place].others if shares else (), shares, strict=False):
                likely = ends_here * share.value
                if likely >= pace.input_price:
                    others.append(Other(place, token, self._worth_drafting(likely, pace)))
                    is_another += share.value
            found.append(self._worth_drafting(ends_here * max(0.0, 1.0 - is_another), pace))
            before *= next_right
        return found, others

    def _worth_drafting(self, likely: float, pace: Pace) -> int:
        """Return how many drafts are worth their masks at a place that is reached with a probability."""
        for count, share in enumerate(self._by_place):
            likely *= share.value
            if likely < 2 * pace.input_price:
                return count
        return self.most

    def _worth_a_break(self, drafts: Sequence[Draft], pace: Pace) -> int:
        """Return how many drafts are worth being checked though masks are not: all that are likely to be right, where
        together they win more than the pass costs."""
        likely, won, count = 1.0, 0.0, 0
        for draft in drafts:
            likely *= draft.share.value
            if likely < pace.input_price:
                break
            won, count = won + likely, count + 1
        return count if won > pace.price(1 + count) - 1 else 0
