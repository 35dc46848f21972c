"""Choosing tokens from logits: temperature, top-k, top-p, repetition control, and noise that depends on no batch.

A token is sampled by the Gumbel trick: the largest of logit / temperature + noise, the noise of a position being a pure
function of the seed, the prompt and the position. So the same text comes out alone or in a batch, and a draft for a
position meets the very noise that the final choice there will meet.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from card_scale.errors import ConfigurationError
from card_scale.objectives.noise import Stream, uniforms

Place = tuple[int, int]
"""(key of the sequence, position in it)."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Raises ConfigurationError for values outside the ranges."""

    temperature: float = 0.0
    """0 takes the most probable token."""
    top_p: float = 1.0
    """Keep the most probable tokens that together reach this probability."""
    top_k: int = 0
    """Keep so many of the most probable tokens; 0 all."""
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens that the text has already, multiplies negative ones (arXiv 1909.05858)."""
    seed: int = 0

    def __post_init__(self) -> None:
        checks = (
            ("temperature", self.temperature >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
        )
        for name, valid, words in checks:
            if not valid:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; valid is a number {words}")


class Chooser:
    """Chooses tokens for the sequences of a batch.

    With a ``leniency`` above 0 a draft is as good as the best token where its probability (times what its noise makes
    of it) is at least the (1 - leniency)-th part of the best one's.
    """

    def __init__(self, sampling: Sampling, leniency: float = 0.0):
        self.sampling, self.leniency = sampling, leniency
        self._gumbel: dict[Place, Tensor] = {}

    def __call__(
        self,
        logits: Tensor,
        places: list[Place],
        contexts: list[Sequence[int]] | None,
        checks: Sequence[int] | None = None,
        others: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Choose a token for each row of logits.

        Args:
            logits: float32 [N, vocabulary]; changed in place.
            places: of the N tokens.
            contexts: token ids before each, where :attr:`needs_contexts`.
            checks: the draft that each decides about, -1 for none; None where there is no leniency.
            others: tokens to return beside each chosen one.

        Returns:
            (int64 [N] chosen tokens; int64 [N, others] the next best ones, -1 where no more may be chosen).
        """
        sampling = self.sampling
        if contexts is not None and self.needs_contexts:
            _penalise(logits, contexts, sampling.repetition_penalty)
        if sampling.temperature > 0:
            logits = _filtered(logits / sampling.temperature, sampling.top_k, sampling.top_p)
            logits = logits + self._noise(places, logits)
        chosen = best = logits.argmax(-1)
        if checks is not None:
            chosen = self._lenient(logits, best, checks)
        return chosen, _next_best(logits, best, others)

    def _lenient(self, scores: Tensor, chosen: Tensor, checks: Sequence[int]) -> Tensor:
        """The draft instead of the chosen token where it is near enough."""
        drafts = torch.tensor(checks, device=scores.device)
        best, theirs = (scores.gather(1, one.clamp(min=0)[:, None])[:, 0] for one in (chosen, drafts))
        allowed = math.log1p(-self.leniency) if self.leniency < 1 else -math.inf
        # What may not be chosen at all has a score of -inf, which is near enough to nothing.
        return torch.where((drafts >= 0) & theirs.isfinite() & (theirs >= best + allowed), drafts, chosen)

    @property
    def needs_contexts(self) -> bool:
        """Whether choices depend on the tokens before them other than through the model."""
        return self.sampling.repetition_penalty != 1.0

    def _noise(self, places: list[Place], logits: Tensor) -> Tensor:
        """float32 [N, vocabulary] Gumbel noise; kept for the places of one call, as the next shares most of them."""
        new = [place for place in dict.fromkeys(places) if place not in self._gumbel]
        if new:
            keys, positions = torch.tensor(new, device=logits.device).unbind(1)
            draws = uniforms(self.sampling.seed, keys, positions, logits.shape[-1], Stream.GENERATION)
            # Half a step of the 24 bits up: never 0.
            drawn = -(-(draws + 2.0**-25).log()).log()
            self._gumbel |= zip(new, drawn, strict=True)
        self._gumbel = {place: self._gumbel[place] for place in places}
        return torch.stack([self._gumbel[place] for place in places])


def _next_best(logits: Tensor, best: Tensor, count: int) -> Tensor:
    """int64 [N, count]: the best tokens but for ``best``, -1 where no more may be chosen."""
    if not count:
        return best.new_empty(len(best), 0)
    # Not by topk alone, which may order equal scores otherwise than argmax.
    scores = logits.gather(1, best[:, None])
    logits.scatter_(1, best[:, None], -torch.inf)
    values, indices = logits.max(-1, keepdim=True) if count == 1 else logits.topk(count, -1)
    logits.scatter_(1, best[:, None], scores)
    return indices.masked_fill(~values.isfinite(), -1)


def sequence_keys(prompts: list[list[int]]) -> list[int]:
    """A number for each prompt, which its content and how many equal ones stand before it determine: not the batch."""
    before: dict[bytes, int] = {}
    keys = []
    for prompt in prompts:
        content = ",".join(map(str, prompt)).encode()
        occurrence = before.get(content, 0)
        before[content] = occurrence + 1
        digest = hashlib.blake2b(b"%d/%s" % (occurrence, content), digest_size=8).digest()
        keys.append(int.from_bytes(digest, "little", signed=True))
    return keys


def _penalise(logits: Tensor, contexts: list[Sequence[int]], penalty: float) -> None:
    for row, context in zip(logits, contexts, strict=True):
        seen = torch.tensor(sorted(set(context)), dtype=torch.int64, device=logits.device)
        found = row[seen]
        row[seen] = torch.where(found > 0, found / penalty, found * penalty)


def _filtered(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """The logits with -inf for tokens that are left out."""
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        probabilities = ordered.softmax(-1)
        # The token that reaches top_p is still kept.
        reached = probabilities.cumsum(-1) - probabilities >= top_p
        logits = logits.masked_fill(torch.empty_like(reached).scatter_(1, order, reached), -torch.inf)
    return logits
