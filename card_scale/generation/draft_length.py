"""How many tokens to draft and to check: what drafts were worth so far against what more inputs of a pass cost."""

from collections.abc import Sequence

DECAY = 0.98
"""Weight of an old observation after each new one."""
PRIOR = 4.0
"""Observations that a first estimate is worth."""
BUCKETS = 8
"""Of the model's own probability of a draft, in which it is counted how often such drafts are right."""
UNCHECKED = 0.5
"""First estimate of the share of right drafts at each place."""


class _Share:
    """An estimate of how often something happens."""

    def __init__(self, first: float):
        self._tried, self._happened = PRIOR, PRIOR * first

    def observe(self, happened: bool) -> None:
        self._tried = DECAY * self._tried + 1
        self._happened = DECAY * self._happened + happened

    @property
    def value(self) -> float:
        return self._happened / self._tried


class DraftLength:
    """Decides which drafts are checked, and how many masks stand behind each number of right ones.

    An input is worth its place where the token that it may win is more likely than its cost: ``input_cost`` for itself,
    and as much for the input that has to check or to go on with it. Sequences of a batch share what is learnt.

    Args:
        most: drafts to make at most.
        input_cost: time of a further input of a pass, as a share of a pass with one; 0 makes all drafts, always.
    """

    def __init__(self, most: int, input_cost: float):
        self.most, self.threshold = most, 2 * input_cost
        self._by_place = [_Share(UNCHECKED) for _ in range(most)]
        self._by_probability = [_Share((bucket + 0.5) / BUCKETS) for bucket in range(BUCKETS)]

    def observe(self, right: int, probabilities: Sequence[float]) -> None:
        """The first ``right`` of the checked drafts were right; those after a wrong one say nothing."""
        for number, probability in enumerate(probabilities[: right + 1]):
            self._by_place[number].observe(number < right)
            self._of(probability).observe(number < right)

    def worth_checking(self, probabilities: Sequence[float]) -> int:
        """Return how many of the drafts, from the first, are worth being checked."""
        likely = 1.0
        for number, probability in enumerate(probabilities):
            likely *= self._of(probability).value
            if likely < self.threshold:
                return number
        return len(probabilities)

    def masks(self, probabilities: Sequence[float]) -> list[int]:
        """Return how many masks to put behind 0, 1, ... right ones of the checked drafts."""
        found, before = [], 1.0
        for number in range(len(probabilities) + 1):
            next_right = self._of(probabilities[number]).value if number < len(probabilities) else 0.0
            found.append(self._worth_drafting(before * (1.0 - next_right)))
            before *= next_right
        return found

    def _worth_drafting(self, likely: float) -> int:
        """Return how many drafts are worth their masks at a place that is reached with a probability."""
        for count, share in enumerate(self._by_place):
            likely *= share.value
            if likely < self.threshold:
                return count
        return self.most

    def _of(self, probability: float) -> _Share:
        return self._by_probability[min(int(probability * BUCKETS), BUCKETS - 1)]
