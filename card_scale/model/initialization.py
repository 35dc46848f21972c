"""Initial weights, a pure function of the seed and the parameter's whole-model name."""

import hashlib

import torch
from torch import Tensor

INITIAL_DEVIATION = 0.02


def initial_weight(name: str, shape: tuple[int, ...], seed: int, layers: int) -> Tensor:
    """Return the initial value of a whole parameter, float32 on CPU.

    Norms start at one, matrices from a normal distribution of deviation 0.02, those that write into the residual stream
    from 0.02 / sqrt(2 * layers) (GPT-2). The generator is keyed by name, so no layout, engine or order of construction
    changes a value.
    """
    if len(shape) == 1:
        return torch.ones(shape)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
    writes_residual = name.endswith(("linear_proj.weight", "linear_fc2.weight"))
    deviation = INITIAL_DEVIATION / (2 * layers) ** 0.5 if writes_residual else INITIAL_DEVIATION
    return torch.randn(shape, generator=generator) * deviation
