"""Keeps glibc from giving a training step's memory back to the kernel, which would zero it again for the next step."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""As glibc's malloc.h numbers them."""
LARGEST = 2**31 - 1
"""What mallopt's int holds."""


def keep_freed_memory() -> None:
    """Let this process reuse what it frees. Where the C library is not glibc, nothing happens.

    By default every tensor of more than some 32 MB is mapped anew, page by page: on a CPU a fifth of the time of a step
    with 64 MB of logits was the kernel's (benchmarks/README.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, LARGEST)
