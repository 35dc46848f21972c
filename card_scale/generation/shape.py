"""What an inference model must know of its sizes. Imports nothing."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a decoder of the Llama shape: pre-norm RMSNorm, rotary positions, SwiGLU, no biases.

    ``block`` is the attention: a position sees its block and those before it. Blocks of 1 make causal attention, blocks
    of ``length`` bidirectional attention.
    """

    rows: int
    """Of the embedding and of the output matrix: the vocabulary with its padding."""
    vocabulary: int
    mask_id: int
    start_id: int
    """Token that stands before the first of a text: the end of another document."""
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    length: int
    rotary_base: float
    norm_epsilon: float
    tied: bool
    block: int = 1
    in_place: bool = False
    """Whether output n is about token n, not about token n + 1."""
    two_streams: bool = False
    """Whether queries go beside the tokens (ARMD), which the Llama shape has not."""

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads
