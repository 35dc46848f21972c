"""Independent restatements of the objectives in plain Python floats (float64), one position at a time."""

import math


def soft_tail_mask(noise_level: float, uniforms: list[float], tail_factor: float) -> list[bool]:
    length = len(uniforms)
    count = max(1, math.floor(length * noise_level))
    window = min(length, max(count, math.floor(tail_factor * count)))
    candidates = sorted(range(length - window, length), key=lambda position: (uniforms[position], position))
    chosen = set(candidates[:count])
    return [position in chosen for position in range(length)]


def uniform_mask(noise_level: float, uniforms: list[float]) -> list[bool]:
    length = len(uniforms)
    count = max(1, math.floor(length * noise_level))
    chosen = set(sorted(range(length), key=lambda position: (uniforms[position], position))[:count])
    return [position in chosen for position in range(length)]


def span_mask(uniforms: list[float], rate: float, longest: int) -> list[bool]:
    masked = [False] * len(uniforms)
    for start, uniform in enumerate(uniforms):
        if uniform < rate:
            length = 1 + math.floor(uniform / rate * longest)
            for position in range(start, min(start + length, len(uniforms))):
                masked[position] = True
    return masked


def context_weights(masked: list[bool], decay: float, beta: float) -> list[float]:
    weights = []
    ambiguity = 0.0
    before = False
    for mask in masked:
        cost = 0.0 if not mask else 2.0 if before else 1.0
        ambiguity = cost + (1.0 - decay) * ambiguity
        weights.append(1.0 / (beta + ambiguity))
        before = mask
    return weights


def sees(query: int, key: int, length: int, block: int) -> bool:
    """Block diffusion's mask, as the union of the BD3-LM paper's three parts; indices into the noisy ⊕ clean input."""
    noisy_query, noisy_key = query < length, key < length
    query_block = (query if noisy_query else query - length) // block
    key_block = (key if noisy_key else key - length) // block
    block_diagonal = noisy_query == noisy_key and query_block == key_block
    offset_block_causal = noisy_query and not noisy_key and query_block > key_block
    block_causal = not noisy_query and not noisy_key and query_block >= key_block
    return block_diagonal or offset_block_causal or block_causal


def order_blocks(length: int, block: int, single_heads: bool) -> list[list[int]]:
    """Blocks of the numbers 0 ... length - 1 of an order; with single heads the first block falls apart."""
    blocks = [list(range(begin, begin + block)) for begin in range(0, length, block)]
    return [[number] for number in blocks[0]] + blocks[1:] if single_heads else blocks


def two_stream_sight(length: int, block: int, single_heads: bool) -> list[list[bool]]:
    """[query][key] over the query stream and the contents behind it, from the words of the ARMD paper.

    Content 0 is the given token, in a block of its own before all; content i is token i - 1 of the order.
    """
    blocks = [[-1], *order_blocks(length, block, single_heads)]
    block_of = {number: index for index, numbers in enumerate(blocks) for number in numbers}
    sees = [[False] * (2 * length) for _ in range(2 * length)]
    for number in range(length):
        for content in range(length):
            sees[number][length + content] = block_of[content - 1] < block_of[number]
            sees[length + number][length + content] = block_of[content - 1] <= block_of[number - 1]
    return sees


def query_sight(length: int, block: int, single_heads: bool) -> list[list[bool]]:
    """[query][key] among the queries: their block and those before."""
    blocks = order_blocks(length, block, single_heads)
    block_of = {number: index for index, numbers in enumerate(blocks) for number in numbers}
    return [[block_of[key] <= block_of[query] for key in range(length)] for query in range(length)]


def order_with_moved_tokens(token_draws: list[float], rank_draws: list[float], count: int) -> list[int]:
    """Take tokens out of the row, then put them back, each at the rank that it was dealt."""
    length = len(token_draws)
    moved = sorted(range(length), key=lambda place: token_draws[place])[:count]
    ranks = sorted(range(length), key=lambda place: rank_draws[place])[:count]
    row = [place for place in range(length) if place not in moved]
    for rank, token in sorted(zip(ranks, moved, strict=True)):
        row.insert(rank, token)
    return row


def cross_entropy(logits: list[float], target: int) -> float:
    top = max(logits)
    return top + math.log(math.fsum(math.exp(logit - top) for logit in logits)) - logits[target]


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 in Python integers, as in the paper: two multiplications, halves swapped, ten rounds."""
    c = list(counter)
    k = list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return tuple(c)
