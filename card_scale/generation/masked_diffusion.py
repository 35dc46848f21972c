"""Samplers of the masked diffusion models, which predict masked tokens in place.

Positions are unmasked in a random order, which absorbing diffusion draws independently of the tokens: for block
diffusion one at a time within a block (the first-hitting sampler, arXiv 2409.02908), for MDLM all that fall into the
same step of the ancestral sampler. A step in which nothing is unmasked needs no pass.
"""

import torch

from card_scale.generation.decoder import Choices, Plan, SequenceDecoder
from card_scale.generation.shape import DecoderShape
from card_scale.objectives.noise import Stream, uniforms


def unmask_times(seed: int, key: int, length: int) -> list[float]:
    """For each position of a sequence a number in [0, 1), its time of unmasking on the way from noise to text."""
    keys = torch.tensor([key])
    return uniforms(seed, keys, torch.zeros_like(keys), length, Stream.GENERATION_ORDER)[0].tolist()


class InPlace(SequenceDecoder):
    """A stretch of positions is filled in some order before the next begins."""

    def __init__(self, prompt: list[int], limit: int, shape: DecoderShape, *, steps: int | None, seed: int, key: int):
        """``steps`` a stretch, in which several positions may fall together; None is one position a step."""
        super().__init__(prompt, limit, shape)
        self.steps = steps
        self.times = unmask_times(seed, key, shape.length)
        self.filled: dict[int, tuple[int, int]] = {}
        """Position → (token, pass) of what is decided in the current stretch."""
        self.waiting: list[list[int]] = []
        """Groups of positions of the current stretch, each to be filled by one pass."""

    def groups(self, positions: range) -> list[list[int]]:
        """The positions in the order of their unmasking, those of one step together."""
        ordered = sorted(positions, key=lambda position: (self.times[position], position))
        if self.steps is None:
            return [[position] for position in ordered]
        by_step: dict[int, list[int]] = {}
        for position in ordered:
            by_step.setdefault(int(self.times[position] * self.steps), []).append(position)
        return list(by_step.values())

    def stretch_plan(self, clean: list[int], stop: int) -> Plan:
        """Ask for the next group; the stretch ends before ``stop``, the inputs begin with uncached clean tokens."""
        begin = len(self.tokens)
        if not self.waiting:
            self.waiting = self.groups(range(begin, min(stop, self.limit)))
        mask = (self.shape.mask_id, 0)
        inputs = clean + [self.filled.get(position, mask)[0] for position in range(begin, stop)]
        group = self.waiting[0]
        read = [position - self.cached for position in group]
        decided = [token for token, _ in self.filled.values()]
        return Plan(inputs, list(range(self.cached, stop)), read, group, behind=[decided] * len(group))

    def fill(self, choices: Choices) -> None:
        """Decide the group; the stretch joins the tokens when its last position is decided."""
        for position, token in zip(self.waiting.pop(0), choices.tokens, strict=True):
            self.filled[position] = token, self.passes
        if not self.waiting:
            tokens, passes = zip(*(self.filled[position] for position in sorted(self.filled)), strict=True)
            self.append(list(tokens), list(passes))
            self.filled = {}


class BlockDiffusionSampler(InPlace):
    """BD3-LM: block after block, each behind the cached clean blocks before it."""

    @property
    def scratch(self) -> int:
        return 2 * self.shape.block

    def plan(self) -> Plan:
        block = self.shape.block
        return self.stretch_plan(self.uncached, (len(self.tokens) // block + 1) * block)

    def take(self, choices: Choices) -> int:
        # A block's keys are those of the whole clean block: a part of it does not enter the cache.
        whole = len(self.tokens) // self.shape.block * self.shape.block
        self.fill(choices)
        return whole - self.cached


class AncestralSampler(InPlace):
    """MDLM: the whole text at once, each step reading all of it."""

    uses_cache = False
    scratch = 0

    def plan(self) -> Plan:
        return self.stretch_plan(self.uncached, self.limit)

    def take(self, choices: Choices) -> int:
        self.fill(choices)
        return 0
