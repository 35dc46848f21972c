"""The orders in which ARMD predicts the tokens of a sample: pure functions of numbers and uniform draws.

An order is int64 [B, L]: ``order[b, n]`` in [0, L) is the token that is predicted n-th.
"""

import torch


def moved_tokens(update: int, most: int, begin: int, end: int) -> int:
    """How many tokens leave their place in the orders of an update: 0 before ``begin``, then 1 growing linearly to
    ``most`` at ``end`` (ARMD, section 4: i_AR, i_perm, rho)."""
    if update < begin or most == 0:
        return 0
    if update >= end:
        return most
    return 1 + (most - 1) * (update - begin) // (end - begin)


def left_to_right(rows: int, length: int, device: torch.device) -> torch.Tensor:
    """Every token in its place; one row, expanded."""
    return torch.arange(length, device=device).expand(rows, -1)


def with_moved_tokens(tokens: torch.Tensor, ranks: torch.Tensor, count: int) -> torch.Tensor:
    """Left to right, but that ``count`` tokens are taken out and put back at random ranks.

    All choices of tokens, of ranks for them and of who gets which are equally likely, so L tokens make any order.

    Args:
        tokens: [B, L] uniform numbers: those with the smallest are moved.
        ranks: [B, L] uniform numbers: the ranks with the smallest receive them.
        count: at most L.
    """
    rows, length = tokens.shape
    if count == 0:
        return left_to_right(rows, length, tokens.device)
    moved, kept = _chosen(tokens, count)
    taken, free = _chosen(ranks, count)
    order = torch.empty(rows, length, dtype=torch.int64, device=tokens.device)
    return order.scatter_(1, taken, moved).scatter_(1, free, kept)


def _chosen(uniforms: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(places of the ``count`` smallest, by size; the other places, ascending)."""
    chosen = uniforms.argsort(dim=1, stable=True)[:, :count]
    is_chosen = torch.zeros_like(uniforms, dtype=torch.int64).scatter_(1, chosen, 1)
    return chosen, is_chosen.argsort(dim=1, stable=True)[:, : uniforms.shape[1] - count]


def strided(rows: int, length: int, streams: int, device: torch.device) -> torch.Tensor:
    """The tokens of equal offset in ``streams`` contiguous streams, offset after offset; one row, expanded.

    Raises ValueError unless ``streams`` divides ``length``.
    """
    if length % streams:
        raise ValueError(f"{streams} streams do not divide {length} tokens")
    order = torch.arange(length, device=device).view(streams, -1).t().flatten()
    return order.expand(rows, -1)
