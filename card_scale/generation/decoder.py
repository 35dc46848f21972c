"""What one way of decoding is: what it asks the model about a sequence, and what it makes of the answer."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from torch import Tensor

from card_scale.generation.shape import DecoderShape


class Queries(NamedTuple):
    """What a pass asks of a model with a query stream, beside the decided tokens that it adds."""

    positions: list[int]
    sees_tokens: Tensor
    """bool [Q, T], which query sees which of the plan's tokens; all see those of the cache."""
    sees_queries: Tensor
    """bool [Q, Q], which query sees which; all see those of the cache."""


class Plan(NamedTuple):
    """The inputs of one pass for one sequence, behind those that the cache holds."""

    tokens: list[int]
    positions: list[int]
    read: list[int]
    """Of which inputs, or where there are queries of which of these, the output is wanted."""
    predicts: list[int]
    """Position of the token that each of these outputs is about."""
    visible: Tensor | None = None
    """bool [Q, Q], which input sees which; None where each sees its block and those before it."""
    behind: Sequence[Sequence[int]] = ()
    """Tokens that each output stands behind beyond those of the sequence; empty where none does."""
    checks: Sequence[int] = ()
    """The draft that each output decides about, -1 for none; empty where none does."""
    queries: Queries | None = None
    """Of a model with a query stream."""


class Choices(NamedTuple):
    """What was chosen for each output of a plan."""

    tokens: list[int]
    probabilities: list[float]
    """Of the chosen tokens, before temperature; empty for a decoder that does not ask for them."""
    others: list[list[int]]
    """The tokens that would have been chosen next, best first; empty for a decoder that does not ask for them."""


class SequenceDecoder(ABC):
    """Decodes one sequence, pass by pass.

    ``tokens`` are the prompt and what is decided without a gap behind it; the cache holds the first ``cached`` of them.
    """

    wants_probabilities: ClassVar[bool] = False
    wants_others = 0
    """For each output so many tokens beside the chosen one."""
    uses_cache: ClassVar[bool] = True
    sequences = 1
    """That share its next pass, itself included."""

    def __init__(self, prompt: list[int], limit: int, shape: DecoderShape):
        """``prompt`` has at least one token; ``limit`` is the length at which decoding ends."""
        self.prompt_length = len(prompt)
        self.tokens = list(prompt)
        self.limit = limit
        self.shape = shape
        self.cached = 0
        self.passes = 0
        self.commit_passes: list[int] = []
        """For each new token the pass, from 1, in which it was decided."""

    @property
    @abstractmethod
    def scratch(self) -> int:
        """The most inputs that a pass has beyond the clean tokens."""

    @abstractmethod
    def plan(self) -> Plan:
        """What to ask in the next pass; the sequence is shorter than its limit."""

    @abstractmethod
    def take(self, choices: Choices) -> int:
        """Decide tokens; return how many of the plan's inputs enter the cache."""

    def append(self, tokens: Sequence[int], passes: Sequence[int] | None = None) -> None:
        """Add decided tokens, up to the limit; ``passes`` in which they were, by default this one."""
        passes = [self.passes] * len(tokens) if passes is None else passes
        room = self.limit - len(self.tokens)
        self.tokens += tokens[:room]
        self.commit_passes += passes[:room]

    @property
    def uncached(self) -> list[int]:
        """Decided tokens whose keys are not in the cache."""
        return self.tokens[self.cached :]
