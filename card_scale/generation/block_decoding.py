"""CARD's decoding (arXiv 2601.22031, section 3.4, equation 9): blocks of masks, filled by what the model is sure of.

Not lossless: a token is taken from a context that still holds masks.
"""

from card_scale.generation.decoder import Choices, Plan, SequenceDecoder
from card_scale.generation.shape import DecoderShape


class BlockDecoding(SequenceDecoder):
    """A window of masks behind the clean tokens; position i of it is predicted by the output before it.

    A masked position takes its token where the probability exceeds ``tau``, or after ``max_passes`` in the window. A
    token that was taken never changes.

    With ``leftmost`` the first masked position, whose context is all clean, is always taken, tokens without a gap
    behind the clean ones join them at once, and the window moves on. Without it (as in the paper) a block is finished
    before the next begins. The clean keys of a block are made by the first pass of the next one.
    """

    wants_probabilities = True

    def __init__(
        self,
        prompt: list[int],
        limit: int,
        shape: DecoderShape,
        *,
        window: int,
        tau: float,
        max_passes: int | None,
        leftmost: bool,
    ):
        super().__init__(prompt, limit, shape)
        self.window, self.tau, self.max_passes, self.leftmost = window, tau, max_passes, leftmost
        self.slots: list[int | None] = []
        """Tokens of the window, None where masked."""
        self.ages: list[int] = []
        """Passes that each slot has seen."""
        self.taken_in: list[int] = []
        """The pass in which each slot was filled."""

    @property
    def scratch(self) -> int:
        return 2 * self.window

    def plan(self) -> Plan:
        if self.leftmost or not self.slots:
            new = min(self.window, self.limit - len(self.tokens)) - len(self.slots)
            self.slots += [None] * new
            self.ages += [0] * new
            self.taken_in += [0] * new
        clean, end = self.uncached, len(self.tokens)
        # The output of the last slot would be about the token behind the window.
        inputs = clean + [self.shape.mask_id if slot is None else slot for slot in self.slots[:-1]]
        read = list(range(len(clean) - 1, len(inputs)))
        behind = [[slot for slot in self.slots[:number] if slot is not None] for number in range(len(read))]
        predicts = list(range(end, end + len(read)))
        return Plan(inputs, list(range(self.cached, self.cached + len(inputs))), read, predicts, behind=behind)

    def take(self, choices: Choices) -> int:
        clean = len(self.tokens) - self.cached
        first = self.slots.index(None)
        for number, (token, probability) in enumerate(zip(choices.tokens, choices.probabilities, strict=True)):
            self.ages[number] += 1
            if self.slots[number] is not None:
                continue
            is_forced = self.max_passes is not None and self.ages[number] >= self.max_passes
            if probability > self.tau or is_forced or (self.leftmost and number == first):
                self.slots[number], self.taken_in[number] = token, self.passes
        filled = self.slots.index(None) if None in self.slots else len(self.slots)
        if not self.leftmost and filled < len(self.slots):
            # The first slot needs the output of the last clean token again.
            return clean - 1
        self.append([slot for slot in self.slots[:filled] if slot is not None], self.taken_in[:filled])
        del self.slots[:filled], self.ages[:filled], self.taken_in[:filled]
        return clean
