"""ARMD's strided generation (arXiv 2601.16971, section 5): several far stretches of a text at once.

N new tokens are cut into S stretches of N / S. The heads of the stretches come one by one; then each pass decides the
next token of every stretch, from all that has been decided so far: S + N / S - 1 passes. That the tokens of a pass do
not see each other is an approximation, for which a model is trained with ``objective.strides``. One stretch is
sequential decoding.
"""

import torch

from card_scale.generation.decoder import Choices, Plan, Queries, SequenceDecoder
from card_scale.generation.shape import DecoderShape


class Strided(SequenceDecoder):
    """Stretches of equal length behind the prompt. ``strides``, S, divides the number of new tokens."""

    def __init__(self, prompt: list[int], limit: int, shape: DecoderShape, *, strides: int):
        super().__init__(prompt, limit, shape)
        begin, stretch = len(prompt), (limit - len(prompt)) // strides
        heads = [begin + stretch * number for number in range(strides)]
        self.waiting = [[head] for head in heads] + [[head + offset for head in heads] for offset in range(1, stretch)]
        """Groups of positions that are decided together, in their order."""
        self.filled: dict[int, tuple[int, int]] = {}
        """Position → (token, pass) of what is decided behind a gap."""
        self.unread = list(enumerate(prompt))
        """(position, token) of what is decided and not in the cache: the prompt, then the group before."""

    @property
    def scratch(self) -> int:
        return 1

    def plan(self) -> Plan:
        positions, tokens = (list(part) for part in zip(*self.unread, strict=True))
        group, is_first = self.waiting[0], self.passes == 0
        # The prompt stands from left to right, and has queries of its own, which later ones see.
        before = list(range(1, self.prompt_length)) if is_first else []
        count, asked = len(tokens), len(before) + len(group)
        visible = torch.ones(count, count, dtype=torch.bool)
        sees_tokens = torch.ones(asked, count, dtype=torch.bool)
        sees_queries = torch.ones(asked, asked, dtype=torch.bool)
        if is_first:
            visible, sees_tokens, sees_queries = visible.tril(), sees_tokens.tril(), sees_queries.tril()
        return Plan(
            tokens,
            positions,
            read=list(range(len(before), asked)),
            predicts=group,
            visible=visible,
            behind=[[token for token, _ in self.filled.values()]] * len(group),
            queries=Queries(before + group, sees_tokens, sees_queries),
        )

    def take(self, choices: Choices) -> int:
        count, group = len(self.unread), self.waiting.pop(0)
        self.unread = list(zip(group, choices.tokens, strict=True))
        self.filled |= {position: (token, self.passes) for position, token in self.unread}
        while len(self.tokens) in self.filled:
            token, decided = self.filled.pop(len(self.tokens))
            self.append([token], [decided])
        return count
