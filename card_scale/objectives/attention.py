"""Kinds of attention: which positions see which, and what follows from it for every count of operations.

A kind is a definition, not a kernel; ``card_scale.model.attention`` has the kernels. Imports nothing heavy.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class AttentionKind(ABC):
    """Which positions see which. A clean token stands for ``inputs_per_token`` positions of the model, of which the
    first in ``predictions`` predict."""

    name: ClassVar[str]
    inputs_per_token: ClassVar[int] = 1
    """Positions that the model reads for each clean token."""

    @abstractmethod
    def visible(self, query: Any, key: Any, positions: int) -> Any:
        """Whether the query at index ``query`` in [0, positions) sees the key at ``key``: integer tensors → bool."""

    @abstractmethod
    def pairs_per_token(self, length: int) -> float:
        """Visible pairs of query and key for each clean token, of ``length`` clean tokens in a sample."""

    def decoding_block(self, length: int) -> int | None:  # noqa: ARG002 - most kinds know no blocks
        """Size of the blocks that see themselves and those before them while decoding; None for a kind without."""
        return None

    def predictions(self, positions: int) -> int:
        """How many of the positions, counted from the first, predict: all that is needed of the last layer."""
        return positions // self.inputs_per_token


@dataclass(frozen=True)
class Causal(AttentionKind):
    """Each position sees itself and those before it."""

    name: ClassVar[str] = "causal"

    def visible(self, query: Any, key: Any, positions: int) -> Any:  # noqa: ARG002 - the same at every length
        return key <= query

    def pairs_per_token(self, length: int) -> float:
        """Half of the square, as Megatron-core counts it (the diagonal's other half is left out)."""
        return length / 2

    def decoding_block(self, length: int) -> int:  # noqa: ARG002 - the same at every length
        return 1


@dataclass(frozen=True)
class Bidirectional(AttentionKind):
    """Every position sees every other."""

    name: ClassVar[str] = "bidirectional"

    def visible(self, query: Any, key: Any, positions: int) -> Any:
        return (query < positions) & (key < positions)

    def pairs_per_token(self, length: int) -> float:
        """All of them."""
        return length

    def decoding_block(self, length: int) -> int:
        return length


@dataclass(frozen=True)
class BlockDiffusion(AttentionKind):
    """2L positions, the noisy sample before the clean one (BD3-LM, arXiv 2503.09573).

    A noisy block sees itself and the clean blocks before it; a clean block itself and the clean blocks before it.
    """

    name: ClassVar[str] = "block_diffusion"
    inputs_per_token: ClassVar[int] = 2

    block: int = 16
    """Block size, a divisor of L."""

    def visible(self, query: Any, key: Any, positions: int) -> Any:
        length = positions // 2
        query_noisy, key_noisy = query < length, key < length
        query_block, key_block = query % length // self.block, key % length // self.block
        within = (query_block == key_block) & (query_noisy == key_noisy)
        before = (key_block < query_block) & ~key_noisy
        return within | before

    def pairs_per_token(self, length: int) -> float:
        """Both halves of a token together: (L + block) / 2 each."""
        return length + self.block

    def decoding_block(self, length: int) -> int:  # noqa: ARG002 - the same at every length
        return self.block
