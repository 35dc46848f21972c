"""ARMD's decoder in plain torch: tokens and queries in two streams through the first half of the layers.

The first half caches the keys of tokens, the second those of queries; of the tokens' sum by position, which gives the
queries their first states, one state is kept (``card_scale.model.query_stream``).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from card_scale.errors import ConfigurationError
from card_scale.generation.cache import CacheWriter, KeyValueCache
from card_scale.generation.model import InferenceModel, Look
from card_scale.generation.shape import DecoderShape
from card_scale.model.initialization import INITIAL_DEVIATION


class TwoStreamCache:
    """Both caches of B sequences; its lengths are the tokens'."""

    def __init__(self, tokens: KeyValueCache, queries: KeyValueCache, state: Tensor):
        self.tokens, self.queries = tokens, queries
        self.state = state
        """float32 [B, head size, hidden], sum over the cached tokens of p(position) x."""
        self.asked = [0] * len(state)
        """Queries of the last pass, all of which stay."""

    @property
    def lengths(self) -> list[int]:
        return self.tokens.lengths

    def commit(self, counts: list[int]) -> None:
        """Keep what the last pass wrote; it holds decided tokens alone, ``counts`` of each sequence."""
        self.tokens.commit(counts)
        self.queries.commit(self.asked)

    def keep(self, rows: list[int]) -> None:
        """Drop all other sequences."""
        self.tokens.keep(rows)
        self.queries.keep(rows)
        self.state = self.state[torch.tensor(rows, device=self.state.device)]
        self.asked = [self.asked[row] for row in rows]


class CacheReader:
    """In the place of a writer: who looks at the tokens' keys without adding to them."""

    def __init__(self, writer: CacheWriter):
        self.writer = writer

    def write(self, layer: int, _keys: Tensor, _values: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the tokens of the pass have written, and all before."""
        return self.writer.read(layer)


class TwoStreamModel(InferenceModel):
    """A trained ARMD decoder, of one-token blocks. Build it with :func:`card_scale.generation.load`."""

    def __init__(self, shape: DecoderShape):
        super().__init__(shape)
        self.wide_layers = shape.layers // 2

    def compile_passes(self, **options: Any) -> None:  # noqa: ARG002 - as of the other models
        """Refused with ConfigurationError: the passes of two streams have too many shapes."""
        raise ConfigurationError("a model of objective.name armd decodes without compilation only; leave it out")

    def new_cache(self, rows: int, capacity: int) -> TwoStreamCache:
        shape, like = self.shape, self.embedding.weight
        sizes = (rows, self.kv_heads, capacity, shape.head_size, like)
        state = like.new_zeros(rows, shape.head_size, shape.hidden, dtype=torch.float32)
        wide, narrow = range(self.wide_layers), range(self.wide_layers, shape.layers)
        return TwoStreamCache(KeyValueCache(wide, *sizes), KeyValueCache(narrow, *sizes), state)

    def forward(  # type: ignore[override]
        self,
        tokens: Tensor,
        positions: Tensor,
        valid: Tensor,
        queries: Tensor,
        sees_tokens: Tensor,
        looks: tuple[Look, Look, Look],
        cache: TwoStreamCache,
    ) -> Tensor:
        """Run one pass; the cache's state takes over the tokens.

        Args:
            tokens: int64 [B, T], decided.
            positions: int64 [B, T], of them.
            valid: bool [B, T], false for what fills up.
            queries: int64 [B, Q], positions that are asked about.
            sees_tokens: bool [B, Q, T], which token of the pass each query sees.
            looks: of tokens at tokens, of queries at tokens, of queries at queries.
            cache: with a row for each sequence.

        Returns:
            float32 [B, Q, vocabulary] logits; -inf for [MASK].
        """
        hidden = self.embedding(tokens)
        token_turn, query_turn = (
            tuple(part.to(hidden.dtype) for part in self.rotary(places)) for places in (positions, queries)
        )
        asked = self._first_states(hidden, positions, valid, queries, sees_tokens, cache)
        at_tokens, queries_at_tokens, at_queries = looks
        for index, layer in enumerate(self.layers):
            if index < self.wide_layers:
                hidden = layer(hidden, token_turn, at_tokens)
                asked = layer(asked, query_turn, queries_at_tokens)
            else:
                asked = layer(asked, query_turn, at_queries)
        return self.read_out(asked)

    def _first_states(
        self,
        hidden: Tensor,
        positions: Tensor,
        valid: Tensor,
        queries: Tensor,
        sees_tokens: Tensor,
        cache: TwoStreamCache,
    ) -> Tensor:
        """[B, Q, hidden] to each query the tokens that it sees, those of the cache and of the pass."""
        values = hidden.float() * valid.unsqueeze(2)
        of_tokens, of_queries = self._waves(positions), self._waves(queries)
        within = (of_queries @ of_tokens.transpose(1, 2)).masked_fill(~sees_tokens, 0.0) @ values
        gathered = within + of_queries @ cache.state
        cache.state = cache.state + of_tokens.transpose(1, 2) @ values
        scaled = INITIAL_DEVIATION * F.rms_norm(gathered, (self.shape.hidden,), eps=self.shape.norm_epsilon)
        return scaled.to(hidden.dtype)

    def _waves(self, positions: Tensor) -> Tensor:
        """p(position), float32 [B, positions, head size]."""
        half = self.shape.head_size // 2
        cosines, sines = (part.squeeze(1)[..., :half].float() for part in self.rotary(positions))
        return torch.cat((cosines, sines), -1)

    @torch.inference_mode()
    def logits(self, tokens: Tensor) -> Tensor:
        """As of the other models: whole sequences from left to right, output n about token n + 1."""
        self.check_tokens(tokens)
        rows, count = tokens.shape
        cache = self.new_cache(rows, count)
        places = torch.arange(count, device=tokens.device).expand(rows, -1)
        seen = torch.ones(count, count, dtype=torch.bool, device=tokens.device).tril().expand(rows, -1, -1)
        everything = torch.ones_like(tokens, dtype=torch.bool)
        causal = Look(None, is_causal=True)
        looks = looks_of(cache, (causal, causal, causal), count, count, tokens.device)
        return self(tokens, places, everything, places + 1, seen, looks, cache)


def looks_of(
    cache: TwoStreamCache, looks: tuple[Look, Look, Look], tokens: int, queries: int, device: torch.device
) -> tuple[Look, Look, Look]:
    """The looks of a pass of so many tokens and queries, with where each writes and reads."""
    at_tokens, queries_at_tokens, at_queries = looks
    writer = CacheWriter(cache.tokens, tokens, device)
    return (
        Look(at_tokens.mask, at_tokens.is_causal, writer),
        Look(queries_at_tokens.mask, queries_at_tokens.is_causal, CacheReader(writer)),
        Look(at_queries.mask, at_queries.is_causal, CacheWriter(cache.queries, queries, device)),
    )
