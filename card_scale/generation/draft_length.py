"""How many tokens to draft: what the drafts so far were worth against what more inputs cost."""

DECAY = 0.97
"""Weight of an old observation after each new one."""
PRIOR = 4.0
"""Observations that the first estimate is worth: half of the drafts right."""


class DraftLength:
    """Chooses the number of drafts with the most tokens for the time, from how often each of them was right.

    Args:
        most: drafts to make at most; with 0 decoding is autoregressive.
        input_cost: time of a further input of a pass, as a share of a pass with one; 0 always takes the most.
    """

    def __init__(self, most: int, input_cost: float):
        self.most, self.input_cost = most, input_cost
        self._tried = [PRIOR] * most
        self._right = [PRIOR / 2] * most

    def observe(self, right: int, drafts: int) -> None:
        """The first ``right`` of ``drafts`` drafts were right; those after a wrong one say nothing."""
        for number in range(min(drafts, right + 1)):
            self._tried[number] = DECAY * self._tried[number] + 1
            self._right[number] = DECAY * self._right[number] + (number < right)

    def best(self) -> int:
        """The number of drafts to make now."""
        if self.input_cost == 0:
            return self.most
        tokens, likely = 1.0, 1.0
        best, best_rate = 0, 1.0
        for count in range(1, self.most + 1):
            likely *= self._right[count - 1] / self._tried[count - 1]
            tokens += likely
            inputs = 1 + count + count * (count + 1)
            rate = tokens / (1 + self.input_cost * (inputs - 1))
            if rate > best_rate:
                best, best_rate = count, rate
        return max(best, 1) if self.most else 0
