"""What tests of the corruption kernels share: a batch by both ways, and how many launches one takes on a GPU."""

import collections

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from card_scale.data.samples import Samples
from card_scale.objectives import noise
from card_scale.objectives.base import Objective
from card_scale.objectives.batch import Batch
from tests.objectives.samples import samples_of

MOVES_NOTHING = {"view", "expand", "slice", "select", "unsqueeze", "t", "transpose", "detach", "alias", "empty"}
"""Operations that launch nothing on a GPU."""


def both(objective: Objective, samples: Samples, seed: int, method: str = "corrupt") -> tuple[Batch, Batch]:
    """Return the objective's batch by tensor operations and by the kernel."""
    defined = getattr(objective, method)(samples, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise, "is_fused", lambda _: True)
        return defined, getattr(objective, method)(samples, seed)


def check_bits(defined: Batch, fused: Batch, *names: str) -> None:
    """Raise AssertionError unless these fields have the same types and bits."""
    for name in names:
        expected, got = getattr(defined, name), getattr(fused, name)
        assert expected.dtype == got.dtype, name
        assert torch.equal(expected, got), name


def launches(objective: Objective, module: object, kernel: str) -> int:
    """Return how many kernels the corruption of a batch launches on a GPU; ``module`` has the objective's own."""
    counts = collections.Counter()

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
            name = operation._schema.name.removeprefix("aten::")
            counts[name] += name.partition(".")[0] not in MOVES_NOTHING
            return operation(*arguments, **(keywords or {}))

    class Kernel:
        def __getitem__(self, _grid):
            return lambda *_, **__: counts.update(kernel=1)

    samples = samples_of(torch.ones(2, 65, dtype=torch.int64))
    with pytest.MonkeyPatch.context() as patch, Count():
        patch.setattr(noise, "is_fused", lambda _: True)
        patch.setattr(module, kernel, Kernel())
        objective.corrupt(samples, 1)
    return counts.total()
