"""Noise as a pure function of (seed, sample, epoch, position), so that no layout, resume or batch order can change it.

The generator is Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3; SC 2011), a
bijection of a 128-bit counter under a 64-bit key. The counter says which number is wanted, the key which sequence; no
state is kept, saved or advanced. It is written with int64 tensor operations, hence the same bits on any device; on a
GPU a kernel of its own draws these bits in one launch.
"""

import enum
import functools
import hashlib
import importlib.util

import torch

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORDS_PER_BLOCK = 4


class Stream(enum.IntEnum):
    """Independent sequences of one seed. A value that was ever trained with keeps its number."""

    NOISE_LEVEL = 0
    MASK = 1
    EVALUATION = 2
    DROPOUT = 3
    STRATA = 4
    MASK_COUNT = 5
    EVALUATION_NOISE_LEVEL = 6
    EVALUATION_STRATA = 7
    GENERATION = 8
    GENERATION_ORDER = 9
    ORDER = 10
    ORDER_RANKS = 11
    EVALUATION_ORDER = 12
    EVALUATION_ORDER_RANKS = 13
    STRIDE = 14


Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def philox4x32(counter: Words, key: tuple[int, int]) -> Words:
    """Philox4x32-10: the four output words for each counter.

    ``counter`` holds four int64 tensors of broadcastable shapes, each element a 32-bit word in [0, 2**32); ``key`` two
    such words. Returns four int64 tensors of 32-bit words in the broadcast shape.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The product of two 32-bit words may wrap around in int64; its 64 bits are right all the same, and the mask
        # undoes the sign extension of the shift.
        product0 = c0 * _MULTIPLIERS[0]
        product1 = c2 * _MULTIPLIERS[1]
        c0 = ((product1 >> 32) & _WORD) ^ c1 ^ k0
        c1 = product1 & _WORD
        c2 = ((product0 >> 32) & _WORD) ^ c3 ^ k1
        c3 = product0 & _WORD
        k0 = (k0 + _KEY_INCREMENTS[0]) & _WORD
        k1 = (k1 + _KEY_INCREMENTS[1]) & _WORD
    return c0, c1, c2, c3


def stream_key(seed: int, stream: int) -> tuple[int, int]:
    """The two key words of a stream: a hash of (seed, stream), so that neighbouring seeds share nothing."""
    digest = hashlib.blake2b(f"{int(seed)}/{int(stream)}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


_KERNELS = f"{__package__}.fused_uniforms"
"""Named, not imported: a machine without a GPU need not have Triton, and an exported folder has this module alone."""


@functools.cache
def has_triton() -> bool:
    """Return whether kernels can be built."""
    return bool(__package__) and all(importlib.util.find_spec(module) for module in ("triton", _KERNELS))


def is_fused(tensor: torch.Tensor) -> bool:
    """Return whether noise for a tensor's device is drawn by kernels of its own."""
    return tensor.is_cuda and has_triton()


def uniforms(seed: int, sample_ids: torch.Tensor, epochs: torch.Tensor, length: int, stream: int) -> torch.Tensor:
    """Uniform numbers of 24 bits, one per (sample, position).

    ``sample_ids`` and ``epochs`` are int64 [B] on one device. Returns float32 [B, length] in [0, 1) on that device. Row
    b depends on ``seed``, ``sample_ids[b]``, ``epochs[b]`` and ``stream`` alone; a longer ``length`` continues a
    shorter one. Raises ValueError for other shapes or types.
    """
    for name, tensor in (("sample_ids", sample_ids), ("epochs", epochs)):
        if tensor.dtype != torch.int64 or tensor.dim() != 1:
            raise ValueError(f"{name} must be int64 of shape [B], got {tensor.dtype} of shape {list(tensor.shape)}")
    if length < 0:
        raise ValueError(f"length must not be negative, got {length}")
    key = stream_key(seed, stream)
    if is_fused(sample_ids):
        fused: torch.Tensor = importlib.import_module(_KERNELS).uniforms(key, sample_ids, epochs, length)
        return fused
    blocks = -(-length // _WORDS_PER_BLOCK)
    block = torch.arange(blocks, dtype=torch.int64, device=sample_ids.device).unsqueeze(0)
    sample = sample_ids.unsqueeze(1)
    counter = (block, sample & _WORD, (sample >> 32) & _WORD, epochs.unsqueeze(1) & _WORD)
    words = torch.stack(philox4x32(counter, key), dim=-1)
    # float32 holds 24 bits exactly; more would round up to 1.0.
    return (words >> 8).to(torch.float32).mul_(2.0**-24).flatten(1)[:, :length]
