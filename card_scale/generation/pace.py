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
    """Counts tokens and time of the passes with drafts; the unit of time is a pass with one input.

    Args:
        input_cost, pass_cost: of :class:`card_scale.generation.draft_length.DraftLength`.
        sequences: whose passes are counted together.
    """

    def __init__(self, input_cost: float, pass_cost: float, sequences: int):
        self._input_cost, self._pass_cost, self._sequences = input_cost, pass_cost, sequences
        self._rest, self._next_rest = 0, SHORTEST_REST
        self._begin()

    def _begin(self) -> None:
        self._time, self._tokens = PASSES, PASSES * HOPE

    def price(self, inputs: int) -> float:
        """Return the time of a pass with so many inputs a sequence."""
        return 1.0 + (self._pass_cost + self._input_cost * (inputs - 1) if inputs > 1 else 0.0)

    @property
    def input_price(self) -> float:
        """Tokens that are won elsewhere in the time of a further input."""
        return self._input_cost * max(1.0, self._tokens / self._time)

    @property
    def is_resting(self) -> bool:
        """Whether no masks are worth their time for now."""
        return self._rest > 0

    def passed(self, inputs: int, tokens: int) -> None:
        """Count a sequence's pass, by its inputs and the tokens that it has decided."""
        if self.is_resting:
            self._rest -= 1
            if not self.is_resting:
                self._begin()
            return
        self._time = DECAY * self._time + self.price(inputs)
        self._tokens = DECAY * self._tokens + tokens
        if self._tokens < self._time:
            self._rest = self._next_rest * self._sequences
            self._next_rest = min(2 * self._next_rest, LONGEST_REST)
        elif self._tokens > HOPE * self._time:
            self._next_rest = SHORTEST_REST
