"""A short fingerprint of a batch, compared inside each tensor x pipeline group so that peers cannot train apart."""

import hashlib
from collections.abc import Iterable

import torch


def batch_digest(tensors: Iterable[torch.Tensor]) -> int:
    """Fingerprint of a batch's shapes, types and bytes.

    Args:
        tensors: CPU tensors in a fixed order; :meth:`card_scale.data.samples.Samples.tensors` is such a sequence.

    Returns:
        An integer that fits int64, so that it can travel in a tensor.
    """
    digest = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().data)
    return int.from_bytes(digest.digest(), "little", signed=True)
