"""Kinds of attention: which positions see which, and what follows from it for every count of operations.

A kind is a definition, not a kernel; ``card_scale.model.attention`` has the kernels. Imports nothing heavy.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from card_scale.errors import ConfigurationError


@dataclass(frozen=True)
class AttentionKind(ABC):
    """Which positions see which. A clean token stands for ``inputs_per_token`` positions of the model, of which the
    first in ``predictions`` predict."""

    name: ClassVar[str]
    inputs_per_token: ClassVar[int] = 1
    """Positions that the model computes for each clean token."""
    has_query_stream: ClassVar[bool] = False
    """Whether the positions that predict stand for no token of their own, and nobody sees them as keys: their first
    states are gathered from the tokens that they see (``card_scale.model.query_stream``)."""

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
        """How many of the positions, counted from the first, predict: all that is needed of the last wide layer."""
        return positions // self.inputs_per_token

    def wide_layers(self, layers: int) -> int:
        """Of so many layers, how many, counted from the first, compute all positions. The last of them answers those
        that predict, and the layers behind it know no others."""
        return layers

    @property
    def behind_wide_layers(self) -> "AttentionKind":
        """The kind of attention among the positions that predict, in the layers behind the wide ones. Raises ValueError
        for a kind that has none."""
        raise ValueError(f"all layers of {self.name} attention are wide")

    def check_layers(self, layers: int) -> None:  # noqa: B027 - most kinds take any number
        """Raise ConfigurationError for a number of layers that cannot be divided so."""


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


@dataclass(frozen=True)
class BlockCausal(AttentionKind):
    """Each position sees its block and those before it; the blocks are those of :class:`StrictBlockCausal`."""

    name: ClassVar[str] = "block_causal"

    block: int = 1
    """Block size, a divisor of L."""
    single_heads: bool = False
    """Whether the first ``block`` positions are blocks of their own."""

    def visible(self, query: Any, key: Any, positions: int) -> Any:  # noqa: ARG002 - the same at every length
        return key < self.end(query)

    def pairs_per_token(self, length: int) -> float:
        """The triangle with its blocks: (L + block - 1) / 2, in the measure in which one-token blocks have L / 2."""
        return (length + self.block - 1) / 2

    def begin(self, place: Any) -> Any:
        """Place of the first token of the block that the token at ``place`` is in: integers or tensors of them."""
        begin = place // self.block * self.block
        return begin + (place - begin) * (place < self.block) if self.single_heads else begin

    def end(self, place: Any) -> Any:
        """Place behind the last token of the block."""
        size = self.block - (self.block - 1) * (place < self.block) if self.single_heads else self.block
        return self.begin(place) + size


@dataclass(frozen=True)
class StrictBlockCausal(AttentionKind):
    """2L positions: the query stream before the content stream (ARMD, arXiv 2601.16971).

    L tokens are predicted in an order, in blocks; the token before them all is given. Position n of the first half is
    the query for the n-th token of the order; position L + i is the content of token i of the order, 0 being the given
    one, so the last token of the order has a query and no content. A query sees the contents of the blocks before its
    own, the given token included, so that no row is empty; a content sees those of its block too. In the second half of
    the layers the queries see each other: those of their block and the blocks before.
    """

    name: ClassVar[str] = "strict_block_causal"
    inputs_per_token: ClassVar[int] = 2
    has_query_stream: ClassVar[bool] = True

    block: int = 1
    """Block size, a divisor of L."""
    single_heads: bool = False
    """Whether the first ``block`` tokens are blocks of their own: the heads of as many streams."""

    def visible(self, query: Any, key: Any, positions: int) -> Any:
        length, blocks = positions // 2, self.blocks
        content = key - length
        # The query for token n of the order sees tokens up to its block's begin; token i, of which the order's number
        # is i - 1, those up to its block's end. The given token (i = 0) sees itself.
        number = query % length - 1
        of_query = blocks.begin(query % length)
        of_content = blocks.end(number * (number >= 0)) * (number >= 0)
        is_query = query < length
        return (content >= 0) & (content <= of_query * is_query + of_content * (query >= length))

    def pairs_per_token(self, length: int) -> float:
        """Both streams of a token together: (L - block + 1) / 2 and (L + block - 1) / 2."""
        return length

    def wide_layers(self, layers: int) -> int:
        """Half of them have two streams."""
        return layers // 2

    @property
    def behind_wide_layers(self) -> AttentionKind:
        return Causal() if self.block == 1 else self.blocks

    def decoding_block(self, length: int) -> int | None:  # noqa: ARG002 - the same at every length
        """Decoding knows the order's blocks of one token alone, or those of strides."""
        return 1 if self.block == 1 else None

    def check_layers(self, layers: int) -> None:
        if layers < 2:
            raise ConfigurationError(f"model.layers is {layers}; two streams take half of the layers: at least 2")

    @property
    def blocks(self) -> BlockCausal:
        """Which token is in which block."""
        return BlockCausal(self.block, self.single_heads)
