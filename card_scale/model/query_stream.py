"""The first states of a query stream: what each query sees of the tokens, gathered by their positions.

Position-prefix aggregation (ARMD, arXiv 2601.16971, section 3):

    g_n = sum over the tokens i that query n sees of <p(position n), p(position i)> x_i

with p the cosines and sines of the rotary angles, so that the product is a sum of cos(frequency * distance). It is
strictly causal, as the query's own token is nowhere in it, and tells the query where it stands. No weight belongs to
it. As linear attention it needs no pairs: a state, the sum of p(position i) x_i over the tokens of the chunks before,
stands for all of them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from card_scale.model.initialization import INITIAL_DEVIATION
from card_scale.objectives.attention import StrictBlockCausal

CHUNK = 128
"""Tokens that are compared pair by pair, unless a block is larger."""


def query_stream(tokens: Tensor, angles: Tensor, kind: StrictBlockCausal, epsilon: float) -> Tensor:
    """Return the first states of the queries.

    Args:
        tokens: [L, B, hidden] embedded tokens, in their order.
        angles: float32 [2L, B or 1, frequencies] rotary angles: of the queries, then of the tokens.
        kind: of attention over 2L positions, queries before tokens; every query sees the token at place 0.
        epsilon: of the norm.

    Returns:
        [L, B, hidden] of the type of ``tokens``: sums of float32, scaled to a root mean square of 0.02, that of the
        embedding before training. At 1 they drown what the layers add: a small model then learns far slower.
    """
    length, rows, hidden = tokens.shape
    # Whole blocks: all that stands before a chunk is seen in it.
    chunk = min(length, kind.block * max(1, CHUNK // kind.block))
    chunks = -(-length // chunk)
    # [chunks, B, chunk, ...]; what fills up the last chunk is nowhere seen.
    values = _chunked(tokens.float(), chunks, chunk)
    waves = torch.cat((angles.cos(), angles.sin()), -1).expand(-1, rows, -1)
    queries, keys = _chunked(waves[:length], chunks, chunk), _chunked(waves[length:], chunks, chunk)
    states = keys.transpose(2, 3) @ values
    before = states.cumsum(0) - states
    place = torch.arange(chunks * chunk, device=tokens.device).view(chunks, 1, chunk)
    visible = kind.visible(place.unsqueeze(3), length + place.unsqueeze(2), 2 * length) & (place < length).unsqueeze(2)
    within = (queries @ keys.transpose(2, 3)).masked_fill(~visible, 0.0) @ values
    gathered = (within + queries @ before).transpose(1, 2).flatten(0, 1)[:length]
    return (INITIAL_DEVIATION * F.rms_norm(gathered, (hidden,), eps=epsilon)).to(tokens.dtype)


def _chunked(states: Tensor, chunks: int, chunk: int) -> Tensor:
    """[L, B, features] → [chunks, B, chunk, features], filled up with zeros."""
    filled = F.pad(states, (0, 0, 0, 0, 0, chunks * chunk - len(states)))
    return filled.view(chunks, chunk, *states.shape[1:]).transpose(1, 2)
