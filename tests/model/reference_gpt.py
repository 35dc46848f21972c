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
) -> Tensor:
    """Return the logits [B, M, vocabulary] of ``tokens`` int64 [B, M] under whole-model ``weights`` by name.

    ``sees`` bool [M, M], (query, key), by default causal; ``positions`` [M], by default 0 ... M - 1.
    """
    count = tokens.shape[1]
    sees = torch.ones(count, count, dtype=torch.bool).tril() if sees is None else sees
    positions = torch.arange(count) if positions is None else positions
    hidden_states = weights["embedding.weight"][tokens]
    for index in range(layers):
        weight = {
            name.removeprefix(f"layers.{index}."): value
            for name, value in weights.items()
            if name.startswith(f"layers.{index}.")
        }
        normed = rms_norm(hidden_states, weight["attention_norm.weight"])
        hidden_states = hidden_states + attention(
            normed,
            weight["attention.linear_qkv.weight"],
            weight["attention.linear_proj.weight"],
            heads,
            sees,
            positions.double(),
        )
        normed = rms_norm(hidden_states, weight["mlp_norm.weight"])
        hidden_states = hidden_states + swiglu(normed, weight["mlp.linear_fc1.weight"], weight["mlp.linear_fc2.weight"])
    head = weights.get("head.weight", weights["embedding.weight"])
    return rms_norm(hidden_states, weights["final_norm.weight"]) @ head.T


def rms_norm(values: Tensor, weight: Tensor) -> Tensor:
    return values / torch.sqrt((values * values).mean(-1, keepdim=True) + 1e-5) * weight


def swiglu(values: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """``first`` holds the gate's rows, then the other factor's."""
    gate, factor = first.split(first.shape[0] // 2)
    gated = values @ gate.T
    return (gated / (1 + torch.exp(-gated)) * (values @ factor.T)) @ second.T


def attention(values: Tensor, first: Tensor, second: Tensor, heads: int, sees: Tensor, positions: Tensor) -> Tensor:
    """``first`` holds for each head its query, key and value rows."""
    size = values.shape[-1] // heads
    mixed = []
    for head in range(heads):
        query, key, value = (values @ rows.T for rows in first[3 * size * head : 3 * size * (head + 1)].split(size))
        scores = rotated(query, positions) @ rotated(key, positions).transpose(1, 2) / math.sqrt(size)
        mixed.append(torch.softmax(scores.masked_fill(~sees, -math.inf), -1) @ value)
    return torch.cat(mixed, -1) @ second.T


def rotated(values: Tensor, positions: Tensor) -> Tensor:
    """Turn each pair (i, i + size / 2) of position p by the angle p / 10000^(2i / size)."""
    size = values.shape[-1]
    half = size // 2
    columns = [None] * size
    for i in range(half):
        angle = positions / 10_000.0 ** (2 * i / size)
        first, second = values[..., i], values[..., i + half]
        columns[i] = first * torch.cos(angle) - second * torch.sin(angle)
        columns[i + half] = second * torch.cos(angle) + first * torch.sin(angle)
    return torch.stack(columns, -1)
