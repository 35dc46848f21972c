"""Independent masks at stratified rates in one Triton kernel, for a GPU: the corruption of MDLM and BD3-LM.

As tensor operations (``card_scale.objectives.masked_diffusion``, the definition) it is some thirty launches before each
step, for which a small step waits. Each position draws its numbers in registers, its block's among them, and sees no
other position.

With TRITON_INTERPRET=1 in the environment, before the first import of this module, the kernel runs on a CPU, for tests.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from card_scale.data.samples import Samples
from card_scale.objectives.fused_uniforms import STEP, draw_at, signed_words

POSITIONS = 1024
"""Of a program."""


class Masked(NamedTuple):
    """What the kernel makes of B rows."""

    inputs: Tensor
    """int64 [B, L]"""
    masked: Tensor
    """bool [B, L]"""
    rates: Tensor
    """float32 [B, blocks]: mask rates."""
    weights: Tensor
    """float32 [B, L]: 1 / rate where masked, else 0."""


KEYS = ["level_key0", "level_key1", "strata_key0", "strata_key1", "mask_key0", "mask_key1"]


@triton.jit(do_not_specialize=["length", "blocks", "batch_size", "mask_id", *KEYS])
def _mask_independently(
    tokens, sample_ids, epochs, global_positions, inputs, masks, rates, weights,
    length, blocks, batch_size, mask_id, level_key0, level_key1, strata_key0, strata_key1, mask_key0, mask_key1,
    lowest: tl.constexpr, positions: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    position = tl.program_id(1) * positions + tl.arange(0, positions)
    within = position < length
    sample, epoch = tl.load(sample_ids + row), tl.load(epochs + row)
    in_run = tl.load(global_positions + row)
    place, batch = in_run % batch_size, in_run // batch_size
    size = length // blocks
    number = position // size
    # A sample takes one stratum in each of `blocks` cells of [0, 1); the next sample begins with a later cell.
    cell = (number + place * blocks // tl.minimum(batch_size, blocks)) % blocks
    stratum = (cell * batch_size + place).to(tl.float64)
    strata = (batch_size.to(tl.int64) * blocks).to(tl.float64)
    in_stratum = draw_at(number, sample, epoch, level_key0, level_key1).to(tl.float64) * STEP
    turn = draw_at(tl.zeros_like(number), batch, batch * 0, strata_key0, strata_key1).to(tl.float64) * STEP
    level = (stratum + in_stratum) / strata + turn
    rate = lowest + (1.0 - lowest) * (level - tl.floor(level))
    drawn = draw_at(position, sample, epoch, mask_key0, mask_key1).to(tl.float64) * STEP
    # The model needs one clean token.
    masked = (drawn < rate) & (position > 0)
    token = tl.load(tokens + row * (length + 1) + position, mask=within, other=0)
    here = row * length + position
    tl.store(inputs + here, tl.where(masked, mask_id, token), mask=within)
    tl.store(masks + here, masked, mask=within)
    tl.store(weights + here, tl.where(masked, 1.0 / rate, 0.0).to(tl.float32), mask=within)
    tl.store(rates + row * blocks + number, rate.to(tl.float32), mask=within & (position % size == 0))


def independently_masked(
    samples: Samples, blocks: int, keys: tuple[tuple[int, int], ...], mask_id: int, lowest: float
) -> Masked:
    """Return what ``masked_diffusion.independent_batch`` defines, to the last bit.

    ``blocks`` divides the inputs of a row; ``keys`` are those of the streams of mask rates, of the rotation of strata
    and of masks (``noise.stream_key``); ``lowest`` is the least mask rate.
    """
    tokens = samples.tokens.contiguous()
    rows, length = len(tokens), tokens.shape[1] - 1
    made = Masked(
        inputs=torch.empty(rows, length, dtype=torch.int64, device=tokens.device),
        masked=torch.empty(rows, length, dtype=torch.bool, device=tokens.device),
        rates=torch.empty(rows, blocks, dtype=torch.float32, device=tokens.device),
        weights=torch.empty(rows, length, dtype=torch.float32, device=tokens.device),
    )
    if rows:
        _mask_independently[(rows, triton.cdiv(length, POSITIONS))](
            tokens,
            samples.sample_ids.contiguous(),
            samples.epochs.contiguous(),
            samples.global_positions.contiguous(),
            *made,
            length,
            blocks,
            samples.batch_size,
            mask_id,
            *(word for key in keys for word in signed_words(key)),
            lowest=lowest,
            positions=min(POSITIONS, triton.next_power_of_2(length)),
            # A product and a sum are two operations, as where they are tensor operations.
            enable_fp_fusion=False,
        )
    return made
