"""Plans of several sequences, as one pass of a model with a query stream."""

import torch
from torch import Tensor

from card_scale.generation.cache import behind_cached, filled
from card_scale.generation.decoder import Plan, Queries
from card_scale.generation.model import Look
from card_scale.generation.two_streams import TwoStreamCache, TwoStreamModel, looks_of


def run_two_streams(model: TwoStreamModel, plans: list[Plan], cache: TwoStreamCache) -> tuple[Tensor, list[int]]:
    """Run one pass; arguments and results as of ``batch_pass.run_pass``."""
    device = model.embedding.weight.device
    asked = [plan.queries for plan in plans if plan.queries is not None]
    tokens = max(len(plan.tokens) for plan in plans)
    queries = max(len(one.positions) for one in asked)
    at_tokens, queries_at_tokens, at_queries = _seen(plans, asked, tokens, queries)
    valid = torch.tensor([[number < len(plan.tokens) for number in range(tokens)] for plan in plans], device=device)
    cache.asked = [len(one.positions) for one in asked]

    def look(within: Tensor, lengths: list[int]) -> Look:
        seen = behind_cached(within.to(device), lengths, max(lengths) + within.shape[2])
        return Look(model.additive(seen).unsqueeze(1))

    of_tokens, of_queries = cache.tokens.lengths, cache.queries.lengths
    looks = look(at_tokens, of_tokens), look(queries_at_tokens, of_tokens), look(at_queries, of_queries)
    logits = model.run(
        torch.tensor([filled(plan.tokens, tokens) for plan in plans], device=device),
        torch.tensor([filled(plan.positions, tokens) for plan in plans], device=device),
        valid,
        torch.tensor([filled(one.positions, queries) for one in asked], device=device),
        queries_at_tokens.to(device),
        looks_of(cache, looks, tokens, queries, device),
        cache,
    )
    rows = [row * queries + number for row, plan in enumerate(plans) for number in plan.read]
    return logits.flatten(0, 1)[torch.tensor(rows, device=device)], [len(plan.read) for plan in plans]


def _seen(plans: list[Plan], asked: list[Queries], tokens: int, queries: int) -> tuple[Tensor, Tensor, Tensor]:
    """What of the pass is seen: by tokens of tokens, by queries of tokens, by queries of queries.

    What only fills up sees the first of its kind, so that no row of a mask is empty, and is seen by nobody.
    """
    rows = len(plans)
    at_tokens = torch.zeros(rows, tokens, tokens, dtype=torch.bool)
    queries_at_tokens = torch.zeros(rows, queries, tokens, dtype=torch.bool)
    at_queries = torch.zeros(rows, queries, queries, dtype=torch.bool)
    for row, (plan, one) in enumerate(zip(plans, asked, strict=True)):
        count, places = len(plan.tokens), len(one.positions)
        assert plan.visible is not None
        at_tokens[row, :count, :count] = plan.visible
        queries_at_tokens[row, :places, :count] = one.sees_tokens
        at_queries[row, :places, :places] = one.sees_queries
        at_tokens[row, count:, 0] = True
        queries_at_tokens[row, places:, 0] = True
        at_queries[row, places:, 0] = True
    return at_tokens, queries_at_tokens, at_queries
