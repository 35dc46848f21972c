"""Lossless parallel decoding: the model drafts behind its own clean prefix and checks by its own clean conditionals.

A pass holds the last token that is sure, the drafts behind it, and behind every place at which the drafts may turn out
wrong a run of masks. The outputs at the clean tokens and drafts are exactly those of autoregressive decoding, as long
as the drafts before them are right: the first wrong draft is replaced by the right token, which is a gain of one token
at least. The run of masks behind the last right token has drafted what comes after it, so a rejection costs no pass.

Where the text has had its last tokens before, what followed them is a draft too, which takes no masks.

Every choice, also a sampled one, is the one that autoregressive decoding makes at that position, since the noise of a
position is the same in both; so the text is the same token by token (up to the rounding of the model itself, whose sums
over more inputs at a time are taken in another order).
"""

import functools

import torch
from torch import Tensor

from card_scale.generation.copies import LONGEST, Copies
from card_scale.generation.decoder import Choices, Plan, SequenceDecoder
from card_scale.generation.draft_length import Draft, DraftLength
from card_scale.generation.shape import DecoderShape


class SelfVerified(SequenceDecoder):
    """``draft_length`` says which drafts are worth their inputs; sequences may share it."""

    wants_probabilities = True

    def __init__(self, prompt: list[int], limit: int, shape: DecoderShape, draft_length: DraftLength):
        super().__init__(prompt, limit, shape)
        self.draft_length = draft_length
        self.known = Copies()
        self.drafts: list[Draft] = []
        self.masks: list[int] = []
        """Of the current plan: how many masks stand behind each number of right drafts."""

    @property
    def scratch(self) -> int:
        most, drafts = self.draft_length.most, self.draft_length.most + self.draft_length.copies
        return 1 + drafts + most * (drafts + 1)

    def plan(self) -> Plan:
        self._copy()
        # A draft for the last place would be one token too many: what is checked wins one more.
        del self.drafts[self.limit - len(self.tokens) - 1 :]
        del self.drafts[self.draft_length.worth_checking(self.drafts) :]
        clean, end, drafts = self.uncached, len(self.tokens), len(self.drafts)
        # With a right drafts a + 1 tokens are won; another draft pays as long as two places are left after them.
        wanted = self.draft_length.masks(self.drafts)
        self.masks = [max(0, min(count, self.limit - end - right - 2)) for right, count in enumerate(wanted)]
        positions = list(range(self.cached, end + drafts))
        predicts = list(range(end, end + drafts + 1))
        for right, count in enumerate(self.masks):
            positions += range(end + right, end + right + count)
            predicts += range(end + right + 1, end + right + 1 + count)
        tokens = [draft.token for draft in self.drafts]
        return Plan(
            tokens=clean + tokens + [self.shape.mask_id] * sum(self.masks),
            positions=positions,
            read=list(range(len(clean) - 1, len(positions))),
            predicts=predicts,
            visible=tree(len(clean), drafts, tuple(self.masks)) if len(positions) > len(clean) else None,
            behind=[tokens[:right] for right in range(drafts + 1)]
            + [tokens[:right] for right, count in enumerate(self.masks) for _ in range(count)],
        )

    def take(self, choices: Choices) -> int:
        clean, drafts = len(self.tokens) - self.cached, len(self.drafts)
        right = 0
        while right < drafts and choices.tokens[right] == self.drafts[right].token:
            right += 1
        self.draft_length.observe(right, self.drafts)
        self.append(choices.tokens[: right + 1])
        begin = drafts + 1 + sum(self.masks[:right])
        made = slice(begin, begin + self.masks[right])
        self.drafts = self.draft_length.predicted(choices.tokens[made], choices.probabilities[made])
        return clean + right

    def _copy(self) -> None:
        """Go on behind the drafts by copying; copy from the first place on where that is more often right."""
        most = self.draft_length.copies
        if not most:
            return
        self.known.learn(self.tokens)
        found, match = self.known.after(self.tokens, self.tokens, most)
        copied = self.draft_length.copied(found, match)
        if copied and (not self.drafts or copied[0].share.value > self.drafts[0].share.value):
            self.drafts = copied
            return
        context = self.tokens[-LONGEST:] + [draft.token for draft in self.drafts]
        self.drafts += self.draft_length.copied(*self.known.after(context, self.tokens, most))


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
