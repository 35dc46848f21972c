"""The decoder once more, in plain float64 torch: what the words "Llama shape" mean, one head and one step at a time."""

import math

import torch
from torch import Tensor


def logits(
    weights: dict[str, Tensor],
    tokens: Tensor,
    layers: int,
    heads: int,
    sees: Tensor | None = None,
    positions: Tensor | None = None,
    *,
    kv_heads: int | None = None,
    rotary_base: float = 10_000.0,
    epsilon: float = 1e-5,
) -> Tensor:
    """Return the logits [B, M, vocabulary] of ``tokens`` int64 [B, M] under whole-model ``weights`` by name.

    ``sees`` bool [M, M], (query, key), by default causal; ``positions`` [M] or [B, M], by default 0 ... M - 1;
    ``kv_heads`` key and value heads, by default as many as ``heads``.
    """
    count = tokens.shape[1]
    sees = torch.ones(count, count, dtype=torch.bool).tril() if sees is None else sees
    positions = torch.arange(count) if positions is None else positions
    hidden_states = weights["embedding.weight"][tokens]
    sizes = (heads, kv_heads or heads), rotary_base, epsilon
    for index in range(layers):
        hidden_states = layer(weights, index, hidden_states, sees, positions, *sizes)
    return head(weights, hidden_states, epsilon)


def two_stream_logits(
    weights: dict[str, Tensor],
    tokens: Tensor,
    positions: Tensor,
    layers: int,
    heads: int,
    sees: Tensor,
    queries_see: Tensor,
    rotary_base: float = 10_000.0,
    epsilon: float = 1e-5,
) -> Tensor:
    """Return ARMD's logits [B, L, vocabulary] of ``tokens`` int64 [B, L] in their order.

    ``positions`` [B, 2L] are those of the queries and of the tokens; ``sees`` bool [2L, 2L] over both streams;
    ``queries_see`` bool [L, L] in the second half of the layers.
    """
    length = tokens.shape[1]
    contents = weights["embedding.weight"][tokens]
    queries = prefix_aggregation(contents, positions, sees[:length, length:], contents.shape[-1] // heads, rotary_base)
    queries = rms_norm(queries, torch.full((), 0.02, dtype=torch.float64), epsilon)
    hidden_states = torch.cat((queries, contents), 1)
    sizes = (heads, heads), rotary_base, epsilon
    for index in range(layers // 2):
        hidden_states = layer(weights, index, hidden_states, sees, positions, *sizes)
    hidden_states = hidden_states[:, :length]
    for index in range(layers // 2, layers):
        hidden_states = layer(weights, index, hidden_states, queries_see, positions[:, :length], *sizes)
    return head(weights, hidden_states, epsilon)


def prefix_aggregation(contents: Tensor, positions: Tensor, sees: Tensor, head_size: int, base: float) -> Tensor:
    """[B, L, hidden]: to each query the sum of the contents that it sees, each times a sum of cosines of distance."""
    rows = []
    for row in range(len(contents)):
        of_row = positions[row % len(positions)].tolist()
        length = len(of_row) // 2
        gathered = []
        for query in range(length):
            total = torch.zeros_like(contents[row, 0])
            for content in range(length):
                if sees[query, content]:
                    distance = of_row[query] - of_row[length + content]
                    factor = sum(math.cos(distance / base ** (2 * i / head_size)) for i in range(head_size // 2))
                    total = total + factor * contents[row, content]
            gathered.append(total)
        rows.append(torch.stack(gathered))
    return torch.stack(rows)


def layer(
    weights: dict[str, Tensor],
    index: int,
    hidden_states: Tensor,
    sees: Tensor,
    positions: Tensor,
    heads: tuple[int, int],
    rotary_base: float,
    epsilon: float,
) -> Tensor:
    weight = {
        name.removeprefix(f"layers.{index}."): value
        for name, value in weights.items()
        if name.startswith(f"layers.{index}.")
    }
    normed = rms_norm(hidden_states, weight["attention_norm.weight"], epsilon)
    hidden_states = hidden_states + attention(
        normed,
        weight["attention.linear_qkv.weight"],
        weight["attention.linear_proj.weight"],
        heads,
        sees,
        positions.double(),
        rotary_base,
    )
    normed = rms_norm(hidden_states, weight["mlp_norm.weight"], epsilon)
    return hidden_states + swiglu(normed, weight["mlp.linear_fc1.weight"], weight["mlp.linear_fc2.weight"])


def head(weights: dict[str, Tensor], hidden_states: Tensor, epsilon: float) -> Tensor:
    matrix = weights.get("head.weight", weights["embedding.weight"])
    return rms_norm(hidden_states, weights["final_norm.weight"], epsilon) @ matrix.T


def rms_norm(values: Tensor, weight: Tensor, epsilon: float = 1e-5) -> Tensor:
    return values / torch.sqrt((values * values).mean(-1, keepdim=True) + epsilon) * weight


def swiglu(values: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """``first`` holds the gate's rows, then the other factor's."""
    gate, factor = first.split(first.shape[0] // 2)
    gated = values @ gate.T
    return (gated / (1 + torch.exp(-gated)) * (values @ factor.T)) @ second.T


def attention(
    values: Tensor,
    first: Tensor,
    second: Tensor,
    heads: tuple[int, int],
    sees: Tensor,
    positions: Tensor,
    rotary_base: float,
) -> Tensor:
    """``first`` holds for each key-value head the rows of its queries, of its key and of its value.

    ``heads`` are the query heads and the key-value heads.
    """
    size = values.shape[-1] // heads[0]
    group = heads[0] // heads[1]
    mixed = []
    for rows_of_group in first.split((group + 2) * size):
        *queries, key, value = (values @ rows.T for rows in rows_of_group.split(size))
        turned = rotated(key, positions, rotary_base).transpose(1, 2)
        for query in queries:
            scores = rotated(query, positions, rotary_base) @ turned / math.sqrt(size)
            mixed.append(torch.softmax(scores.masked_fill(~sees, -math.inf), -1) @ value)
    return torch.cat(mixed, -1) @ second.T


def rotated(values: Tensor, positions: Tensor, base: float) -> Tensor:
    """Turn each pair (i, i + size / 2) of position p by the angle p / base^(2i / size)."""
    size = values.shape[-1]
    half = size // 2
    columns = [None] * size
    for i in range(half):
        angle = positions / base ** (2 * i / size)
        first, second = values[..., i], values[..., i + half]
        columns[i] = first * torch.cos(angle) - second * torch.sin(angle)
        columns[i + half] = second * torch.cos(angle) + first * torch.sin(angle)
    return torch.stack(columns, -1)
