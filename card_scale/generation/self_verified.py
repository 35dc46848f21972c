"""Lossless parallel decoding: the model drafts behind its own clean prefix and checks by its own clean conditionals.

A pass holds the last token that is sure, the drafts behind it, and behind every place at which the drafts may turn out
wrong a run of masks. The outputs at the clean tokens and drafts are exactly those of autoregressive decoding, as long
as the drafts before them are right: the first wrong draft is replaced by the right token, which is a gain of one token
at least. The run of masks behind the last right token has drafted what comes after it, so a rejection costs no pass.

For a draft that may be wrong its next best candidate is an input too, with masks of its own behind it: where that one
is right, its output is one more token.

Where the text has had its last tokens before, what followed them is a draft too, which takes no masks.

Every choice, also a sampled one, is the one that autoregressive decoding makes at that position, since the noise of a
position is the same in both; so the text is the same token by token (up to the rounding of the model itself, whose sums
over more inputs at a time are taken in another order). With some leniency drafts that are nearly as good are taken too:
more tokens a pass, another text.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from card_scale.generation.copies import LONGEST, Copies
from card_scale.generation.decoder import Choices, Plan, SequenceDecoder
from card_scale.generation.draft_length import Draft, DraftLength
from card_scale.generation.pace import Pace
from card_scale.generation.shape import DecoderShape


class Ending(NamedTuple):
    """A place of a pass at which what was drafted may end: its output is the token that comes then."""

    right: int
    """Drafts before it."""
    other: int | None
    """Token in the place of the next draft, where that is considered."""
    masks: int
    """Behind it."""


class SelfVerified(SequenceDecoder):
    """``draft_length`` says which drafts are worth their inputs; sequences may share it, each has its ``pace``."""

    wants_probabilities = True

    def __init__(self, prompt: list[int], limit: int, shape: DecoderShape, draft_length: DraftLength, pace: Pace):
        super().__init__(prompt, limit, shape)
        self.draft_length, self.pace = draft_length, pace
        self.wants_others = draft_length.candidates - 1
        self.known = Copies()
        self.drafts: list[Draft] = []
        self.inputs = 1
        """Of the current plan, counted from the last token that is sure."""
        self.endings: list[Ending] = []
        """Of the current plan, in the order of their outputs: behind each number of right drafts, then with others."""

    @property
    def scratch(self) -> int:
        most, drafts = self.draft_length.most, self.draft_length.most + self.draft_length.copies
        others = most * (self.draft_length.candidates - 1)
        return 2 + drafts + others + most * (1 + drafts + others)

    def plan(self) -> Plan:
        self.pace.sequences = self.sequences
        self._copy()
        # A draft for the last place would be one token too many: what is checked wins one more.
        del self.drafts[self.limit - len(self.tokens) - 1 :]
        del self.drafts[self.draft_length.worth_checking(self.drafts, self.pace) :]
        clean, end, tokens = self.uncached, len(self.tokens), [draft.token for draft in self.drafts]
        self.endings = self._endings()
        others = [(ending.right, ending.other) for ending in self.endings if ending.other is not None]
        positions = [*range(self.cached, end + len(tokens)), *(end + place for place, _ in others)]
        predicts = [*range(end, end + len(tokens) + 1), *(end + place + 1 for place, _ in others)]
        behind = [_behind(ending, tokens) for ending in self.endings]
        for ending, path in zip(self.endings, behind[:], strict=True):
            first = end + len(path)
            positions += range(first, first + ending.masks)
            predicts += range(first + 1, first + 1 + ending.masks)
            behind += [path] * ending.masks
        masks = sum(ending.masks for ending in self.endings)
        self.inputs = len(positions) - len(clean) + 1
        return Plan(
            tokens=clean + tokens + [other for _, other in others] + [self.shape.mask_id] * masks,
            positions=positions,
            read=list(range(len(clean) - 1, len(positions))),
            predicts=predicts,
            visible=self._tree(len(clean)) if len(positions) > len(clean) else None,
            behind=behind,
            checks=tokens + [-1] * (1 + len(others) + masks),
        )

    def take(self, choices: Choices) -> int:
        clean, drafts = len(self.tokens) - self.cached, len(self.drafts)
        right = 0
        while right < drafts and choices.tokens[right] == self.drafts[right].token:
            right += 1
        decided = choices.tokens[: right + 1]
        self.draft_length.observe(right, self.drafts, decided[-1])
        instead = (right, decided[-1])
        paths = [(ending.right, ending.other) for ending in self.endings]
        reached = paths.index(instead) if instead in paths else right
        if reached != right:
            decided.append(choices.tokens[reached])
        if self.pace.passed(self.inputs, len(decided)):
            self.draft_length.try_anew()
        self.append(decided)
        begin = len(self.endings) + sum(ending.masks for ending in self.endings[:reached])
        made = slice(begin, begin + self.endings[reached].masks)
        self.drafts = self.draft_length.predicted(
            choices.tokens[made], choices.probabilities[made], choices.others[made]
        )
        # Another candidate's keys do not lie behind those of the drafts before it: it is read once more.
        return clean + right

    def _endings(self) -> list[Ending]:
        """Where the drafts may end. A draft pays as long as two places are left behind the tokens that are won."""
        places = self.limit - len(self.tokens) - 2
        masks, others = self.draft_length.masks(self.drafts, self.pace)
        found = [Ending(right, None, max(0, min(count, places - right))) for right, count in enumerate(masks)]
        return found + [
            Ending(other.place, other.token, max(0, min(other.masks, places - other.place - 1))) for other in others
        ]

    def _tree(self, clean: int) -> Tensor:
        return tree(clean, tuple((ending.right, ending.other is not None, ending.masks) for ending in self.endings))

    def _copy(self) -> None:
        """Go on behind the drafts by copying; copy from the first place on where that is more often right."""
        most = self.draft_length.copies
        if not most:
            return
        self.known.learn(self.tokens)
        found, match = self.known.after(self.tokens, self.tokens, most)
        copied = self.draft_length.copied(found, match)
        if copied and (not self.drafts or copied[0].share.value > self.drafts[0].share.value):
            # What masks have drafted for the first place is still the best other candidate.
            guesses = [token for draft in self.drafts[:1] for token in (draft.token, *draft.others)]
            others = [token for token in guesses if token != copied[0].token]
            self.drafts = [copied[0]._replace(others=tuple(others[: self.wants_others])), *copied[1:]]
            return
        context = self.tokens[-LONGEST:] + [draft.token for draft in self.drafts]
        self.drafts += self.draft_length.copied(*self.known.after(context, self.tokens, most))


def _behind(ending: Ending, drafts: list[int]) -> list[int]:
    """The tokens of a pass, beyond the decided ones, that an ending stands behind."""
    return drafts[: ending.right] + ([] if ending.other is None else [ending.other])


@functools.lru_cache(maxsize=1024)
def tree(clean: int, endings: tuple[tuple[int, bool, int], ...]) -> Tensor:
    """bool [Q, Q]: which input of a pass sees which.

    The inputs are the clean tokens, the drafts, the other candidates, then a run of masks for each ending, given as
    (right drafts, whether with another candidate, masks). Each sees the clean tokens, the drafts that are right where
    it stands, that candidate, and of its own run itself and those before it.
    """
    others = sum(with_other for _, with_other, _ in endings)
    chain = clean + len(endings) - others - 1
    total = chain + others + sum(masks for _, _, masks in endings)
    visible = torch.eye(total, dtype=torch.bool)
    visible[:chain, :chain] = torch.ones(chain, chain, dtype=torch.bool).tril()
    other, begin = chain, chain + others
    for right, with_other, masks in endings:
        run = slice(begin, begin + masks)
        visible[run, run] = torch.ones(masks, masks, dtype=torch.bool).tril()
        visible[run, : clean + right] = True
        if with_other:
            visible[other, : clean + right] = True
            visible[run, other] = True
            other += 1
        begin += masks
    return visible
