"""Lossless parallel decoding: the model drafts behind its own clean prefix and checks by its own clean conditionals.

A pass holds the last token that is sure, the drafts behind it, and behind every place at which the drafts may turn out
wrong a run of masks. The outputs at the clean tokens and drafts are exactly those of autoregressive decoding, as long
as the drafts before them are right: the first wrong draft is replaced by the right token, which is a gain of one token
at least. The run of masks behind the last right token has drafted what comes after it, so a rejection costs no pass.

Every choice, also a sampled one, is the one that autoregressive decoding makes at that position, since the noise of a
position is the same in both; so the text is the same token by token (up to the rounding of the model itself, whose sums
over more inputs at a time are taken in another order).
"""

import functools

import torch
from torch import Tensor

from card_scale.generation.decoder import Choices, Plan, SequenceDecoder
from card_scale.generation.draft_length import DraftLength
from card_scale.generation.shape import DecoderShape


class SelfVerified(SequenceDecoder):
    """``draft_length`` says which drafts are worth their inputs; sequences may share it."""

    wants_probabilities = True

    def __init__(self, prompt: list[int], limit: int, shape: DecoderShape, draft_length: DraftLength):
        super().__init__(prompt, limit, shape)
        self.draft_length = draft_length
        self.drafts: list[int] = []
        self.probabilities: list[float] = []
        """Of the drafts, by the outputs that made them."""
        self.masks: list[int] = []
        """Of the current plan: how many masks stand behind each number of right drafts."""

    @property
    def scratch(self) -> int:
        most = self.draft_length.most
        return 1 + most + most * (most + 1)

    def plan(self) -> Plan:
        drafts = self.draft_length.worth_checking(self.probabilities)
        del self.drafts[drafts:], self.probabilities[drafts:]
        clean, end = self.uncached, len(self.tokens)
        # With a right drafts a + 1 tokens are won; another draft pays as long as two places are left after them.
        wanted = self.draft_length.masks(self.probabilities)
        self.masks = [max(0, min(count, self.limit - end - right - 2)) for right, count in enumerate(wanted)]
        positions = list(range(self.cached, end + drafts))
        predicts = list(range(end, end + drafts + 1))
        for right, count in enumerate(self.masks):
            positions += range(end + right, end + right + count)
            predicts += range(end + right + 1, end + right + 1 + count)
        return Plan(
            tokens=clean + self.drafts + [self.shape.mask_id] * sum(self.masks),
            positions=positions,
            read=list(range(len(clean) - 1, len(positions))),
            predicts=predicts,
            visible=tree(len(clean), drafts, tuple(self.masks)),
            behind=[self.drafts[:right] for right in range(drafts + 1)]
            + [self.drafts[:right] for right, count in enumerate(self.masks) for _ in range(count)],
        )

    def take(self, choices: Choices) -> int:
        clean, drafts = len(self.tokens) - self.cached, len(self.drafts)
        right = 0
        while right < drafts and choices.tokens[right] == self.drafts[right]:
            right += 1
        self.draft_length.observe(right, self.probabilities)
        self.append(choices.tokens[: right + 1])
        begin = drafts + 1 + sum(self.masks[:right])
        made = slice(begin, begin + self.masks[right])
        self.drafts, self.probabilities = choices.tokens[made], choices.probabilities[made]
        return clean + right


@functools.lru_cache(maxsize=1024)
def tree(clean: int, drafts: int, masks: tuple[int, ...]) -> Tensor:
    """bool [Q, Q]: which input of a pass sees which; clean tokens, drafts, then a run of masks for each number of right
    drafts, which sees the clean tokens, so many drafts, and itself."""
    chain = clean + drafts
    total = chain + sum(masks)
    visible = torch.ones(total, total, dtype=torch.bool).tril()
    begin = chain
    for right, count in enumerate(masks):
        visible[begin : begin + count, clean + right : begin] = False
        begin += count
    return visible
