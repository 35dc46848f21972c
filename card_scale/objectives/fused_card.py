"""CARD's training corruption in one Triton kernel, for a GPU: noise levels, masks, inputs and weights of a batch.

As tensor operations (``card_scale.objectives.card``, the definition) it is some fifty launches before each step, for
which a small step waits. Each program makes one row: it draws the row's numbers in registers, by the counters of
``card_scale.objectives.noise``, and finds the N-th smallest by bisection, for they are integers of 24 bits.

With TRITON_INTERPRET=1 in the environment, before the first import of this module, the kernel runs on a CPU, for tests.
"""

from typing import Literal, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from card_scale.data.samples import Samples
from card_scale.objectives.fused_uniforms import STEP, draw_at, signed_words

BITS = tl.constexpr(24)
"""Of a drawn number."""

OUTSIDE = tl.constexpr(2**24)
"""More than any drawn number: never among the smallest."""


class Rule(NamedTuple):
    """How rows are corrupted: fields of ``CardObjective``, by their names."""

    masking: Literal["soft_tail", "uniform", "spans"]
    tail_factor: float
    min_noise: float
    max_noise: float
    span_rate: float
    span_length: int
    reweight: bool
    decay: float
    beta: float
    masked_weight: float


class Corrupted(NamedTuple):
    """What the kernel makes of B rows."""

    inputs: Tensor
    """int64 [B, L]"""
    masked: Tensor
    """bool [B, L]"""
    noise_level: Tensor
    """float32 [B]; under spans the share of masks."""
    weights: Tensor
    """float32 [B, L]"""


@triton.jit
def _larger(left, right):
    return tl.maximum(left, right)


@triton.jit
def _then(keep, ambiguity, further_keep, further_ambiguity):
    """One stretch of the recurrence S = C + keep * S after another."""
    return keep * further_keep, ambiguity * further_keep + further_ambiguity


@triton.jit
def _in_runs(place, draws, rate: tl.constexpr, longest: tl.constexpr):
    """Whether ``place`` lies in a run of masks that starts there or before."""
    numbers = draws.to(tl.float64) * STEP
    starts = (place >= 0) & (numbers < rate)
    # A run that is longer than any row may be longer than an int32.
    more = tl.minimum(tl.floor(numbers / rate * longest), OUTSIDE).to(tl.int32)
    ends = tl.where(starts, place + 1 + more, 0)
    return (place >= 0) & (place < tl.associative_scan(ends, 0, _larger))


@triton.jit
def _at_most(draws, threshold):
    return tl.sum((draws <= threshold).to(tl.int32), 0)


@triton.jit
def _among_smallest(draws, previous, count):
    """Whether each draw, and the one before it, is among the ``count`` smallest of the row, ties to the lower place."""
    low, high = tl.zeros((), tl.int32), tl.full((), 2**24 - 1, tl.int32)
    for _ in range(BITS):
        middle = (low + high) // 2
        enough = _at_most(draws, middle) >= count
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle + 1)
    ties = count - _at_most(draws, high - 1)
    tied = (draws == high).to(tl.int32)
    rank = tl.cumsum(tied, 0)
    chosen = (draws < high) | ((tied == 1) & (rank <= ties))
    return chosen, (previous < high) | ((previous == high) & (rank - tied <= ties))


@triton.jit(do_not_specialize=["level_key0", "level_key1", "mask_key0", "mask_key1", "mask_id"])
def _corrupt(
    tokens, sample_ids, epochs, inputs, masks, levels, weights,
    length, mask_id, level_key0, level_key1, mask_key0, mask_key1,
    in_spans: tl.constexpr, in_tail: tl.constexpr, tail_factor: tl.constexpr,
    min_noise: tl.constexpr, noise_range: tl.constexpr, rate: tl.constexpr, longest: tl.constexpr,
    reweight: tl.constexpr, keep: tl.constexpr, beta: tl.constexpr, masked_weight: tl.constexpr,
    block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    sample, epoch = tl.load(sample_ids + row), tl.load(epochs + row)
    position = tl.arange(0, block)
    # The first input is never masked, so the draws are those of the inputs after it.
    place = position - 1
    maskable = length - 1
    drawn = draw_at(tl.maximum(place, 0), sample, epoch, mask_key0, mask_key1)
    drawn_before = draw_at(tl.maximum(place - 1, 0), sample, epoch, mask_key0, mask_key1)
    if in_spans:
        masked = _in_runs(place, drawn, rate, longest) & (place < maskable)
        masked_before = _in_runs(place - 1, drawn_before, rate, longest)
        level = tl.div_rn(tl.sum(masked.to(tl.float32), 0), length.to(tl.float32))
    else:
        number = tl.max(draw_at(tl.zeros_like(position), sample, epoch, level_key0, level_key1), 0)
        level = (min_noise + noise_range * (number.to(tl.float64) * STEP)).to(tl.float32)
        most = maskable.to(tl.float64)
        count = tl.minimum(tl.maximum(tl.floor(most * level.to(tl.float64)), 1.0), most)
        window = most
        if in_tail:
            window = tl.minimum(tl.maximum(tl.floor(count * tail_factor), count), most)
        begin = maskable - window.to(tl.int32)
        inside = (place >= begin) & (place < maskable)
        inside_before = (place - 1 >= begin) & (place - 1 < maskable)
        masked, masked_before = _among_smallest(
            tl.where(inside, drawn, OUTSIDE), tl.where(inside_before, drawn_before, OUTSIDE), count.to(tl.int32)
        )
    if reweight:
        # In float64: with a slow decay it is a sum over the whole row, of which float32 would lose digits.
        ambiguity = masked.to(tl.float64) * (1.0 + masked_before.to(tl.float64))
        keeps = tl.full((block,), keep, tl.float64)
        _, ambiguity = tl.associative_scan((keeps, ambiguity), 0, _then)
        weight = tl.div_rn(tl.full((block,), 1.0, tl.float32), (ambiguity + beta).to(tl.float32))
    else:
        weight = tl.where(masked, masked_weight, 1.0).to(tl.float32)
    within = position < length
    token = tl.load(tokens + row * (length + 1) + position, mask=within, other=0)
    here = row * length + position
    tl.store(inputs + here, tl.where(masked, mask_id, token), mask=within)
    tl.store(masks + here, masked, mask=within)
    tl.store(weights + here, weight, mask=within)
    tl.store(levels + row, level)


def corrupted(
    samples: Samples, level_key: tuple[int, int], mask_key: tuple[int, int], mask_id: int, rule: Rule
) -> Corrupted:
    """Return what ``CardObjective.corrupt`` defines: the same masks and levels, and the weights but for float32's
    order of addition.

    ``samples`` have at least 2 inputs a row, and no more than a program's registers hold. The keys are those of the
    streams of noise levels and masks (``noise.stream_key``).
    """
    tokens = samples.tokens.contiguous()
    rows, length = len(tokens), tokens.shape[1] - 1
    made = Corrupted(
        inputs=torch.empty(rows, length, dtype=torch.int64, device=tokens.device),
        masked=torch.empty(rows, length, dtype=torch.bool, device=tokens.device),
        noise_level=torch.empty(rows, dtype=torch.float32, device=tokens.device),
        weights=torch.empty(rows, length, dtype=torch.float32, device=tokens.device),
    )
    if rows:
        block = triton.next_power_of_2(length)
        _corrupt[(rows,)](
            tokens,
            samples.sample_ids.contiguous(),
            samples.epochs.contiguous(),
            *made,
            length,
            mask_id,
            *signed_words(level_key),
            *signed_words(mask_key),
            in_spans=rule.masking == "spans",
            in_tail=rule.masking == "soft_tail",
            tail_factor=rule.tail_factor,
            min_noise=rule.min_noise,
            noise_range=rule.max_noise - rule.min_noise,
            rate=rule.span_rate,
            longest=rule.span_length,
            reweight=rule.reweight,
            keep=1.0 - rule.decay,
            beta=rule.beta,
            masked_weight=rule.masked_weight,
            block=block,
            num_warps=min(max(block // 256, 4), 16),
            # A product and a sum are two operations, as where they are tensor operations.
            enable_fp_fusion=False,
        )
    return made
