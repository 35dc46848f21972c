"""Whether passes with drafts win time at all, by what they have won so far."""

DECAY = 0.95
"""Weight of an old pass after each new one."""
PASSES = 4.0
"""That the first estimate is worth."""
HOPE = 1.2
"""First estimate: tokens of a pass with drafts in the time of a pass without."""
SHORTEST_REST, LONGEST_REST = 8, 128
"""Passes without masks, after which they are tried again; each rest in a row is twice as long."""


class Pace:
    """Counts tokens and time of a sequence's passes with drafts; the unit of time is a pass with one input a sequence.

    Args:
        input_cost: time of a further input of a pass of one sequence, as a share of a pass with one.
        pass_cost: time that a pass with further inputs takes beyond theirs, as such a share.

    Attributes:
        sequences: that share the next pass.
    """

    def __init__(self, input_cost: float, pass_cost: float = 0.0):
        self._input_cost, self._pass_cost = input_cost, pass_cost
        self.sequences = 1
        self._rest, self._next_rest, self._without = 0, SHORTEST_REST, 0
        self._begin()

    def _begin(self) -> None:
        self._time, self._tokens = PASSES, PASSES * HOPE

    @property
    def _one_each(self) -> float:
        """Time of a pass with one input of each sequence, in passes of one sequence alone."""
        return 1.0 + self._input_cost * (self.sequences - 1)

    @property
    def input_cost(self) -> float:
        """Time of a further input of each sequence."""
        return self._input_cost * self.sequences / self._one_each

    @property
    def input_price(self) -> float:
        """Tokens that are won elsewhere in the time of a further input."""
        return self.input_cost * max(1.0, self._tokens / self._time)

    def price(self, inputs: int) -> float:
        """Return the time of a pass with so many inputs a sequence."""
        return 1.0 + self._pass_cost / self._one_each + self.input_cost * (inputs - 1) if inputs > 1 else 1.0

    @property
    def is_resting(self) -> bool:
        """Whether no masks are worth their time for now."""
        return self._rest > 0

    def passed(self, inputs: int, tokens: int) -> bool:
        """Count a pass, by its inputs and the tokens that it has decided.

        Returns:
            Whether drafts are to be tried anew, whatever was learnt of them: a rest is over, or none have been made for
            long.
        """
        self._without = 0 if inputs > 1 else self._without + 1
        if self.is_resting:
            self._rest -= 1
            if not self.is_resting:
                self._begin()
            return not self.is_resting
        self._time = DECAY * self._time + self.price(inputs)
        self._tokens = DECAY * self._tokens + tokens
        if self._tokens < self._time:
            self._rest = self._next_rest
            self._next_rest = min(2 * self._next_rest, LONGEST_REST)
        elif self._tokens > HOPE * self._time:
            self._next_rest = SHORTEST_REST
        return self._without > 0 and self._without % LONGEST_REST == 0
