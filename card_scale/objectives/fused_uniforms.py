"""The same numbers as :func:`card_scale.objectives.noise.uniforms` in one Triton kernel, or within another, for a GPU.

As tensor operations the ten rounds are over a hundred launches, during which the device waits at every small step.

With TRITON_INTERPRET=1 in the environment, before the first import of this module, the kernel runs on a CPU, for tests.
"""

import torch
import triton
import triton.language as tl

COUNTERS = 256
"""Of a program; each gives four numbers."""

STEP = tl.constexpr(2.0**-24)


@triton.jit(do_not_specialize=["key0", "key1"])
def _uniforms(sample_ids, epochs, numbers, length, key0, key1, counters: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * counters + tl.arange(0, counters)
    sample = tl.load(sample_ids + row)
    zero = tl.zeros((counters,), tl.uint32)
    first, second, third, fourth = tl.philox_impl(
        block.to(tl.uint32),
        zero + sample.to(tl.uint32),
        zero + (sample >> 32).to(tl.uint32),
        zero + tl.load(epochs + row).to(tl.uint32),
        zero + key0.to(tl.uint32),
        zero + key1.to(tl.uint32),
    )
    places = numbers + row * length + block * 4
    left = length - block * 4
    # float32 holds 24 bits exactly; more would round up to 1.0.
    tl.store(places, (first >> 8).to(tl.float32) * STEP, mask=left > 0)
    tl.store(places + 1, (second >> 8).to(tl.float32) * STEP, mask=left > 1)
    tl.store(places + 2, (third >> 8).to(tl.float32) * STEP, mask=left > 2)
    tl.store(places + 3, (fourth >> 8).to(tl.float32) * STEP, mask=left > 3)


@triton.jit
def draw_at(place, sample, epoch, key0, key1):
    """The numbers of a stream at ``place`` (not negative), int32 of 24 bits: uniforms times 2**24, in registers."""
    zero = tl.zeros_like(place).to(tl.uint32)
    first, second, third, fourth = tl.philox_impl(
        (place // 4).to(tl.uint32),
        zero + sample.to(tl.uint32),
        zero + (sample >> 32).to(tl.uint32),
        zero + epoch.to(tl.uint32),
        zero + key0.to(tl.uint32),
        zero + key1.to(tl.uint32),
    )
    word = place % 4
    chosen = tl.where(word < 2, tl.where(word == 0, first, second), tl.where(word == 2, third, fourth))
    return (chosen >> 8).to(tl.int32)


def uniforms(key: tuple[int, int], sample_ids: torch.Tensor, epochs: torch.Tensor, length: int) -> torch.Tensor:
    """float32 [B, length] in [0, 1) of a stream's key; ``sample_ids`` and ``epochs`` are int64 [B]."""
    numbers = torch.empty(len(sample_ids), length, dtype=torch.float32, device=sample_ids.device)
    if numbers.numel():
        grid = (len(sample_ids), triton.cdiv(length, 4 * COUNTERS))
        _uniforms[grid](sample_ids.contiguous(), epochs.contiguous(), numbers, length, *signed_words(key), COUNTERS)
    return numbers


def signed_words(key: tuple[int, int]) -> list[int]:
    """A key's words as signed ones, so that every key has the same type and none compiles a kernel of its own."""
    return [word - 2**32 if word >= 2**31 else word for word in key]
