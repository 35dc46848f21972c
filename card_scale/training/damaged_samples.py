"""Samples that cannot be read: left out by all ranks alike, up to a number."""

import sys
from collections.abc import Mapping

import torch
import torch.distributed as dist

from card_scale.data.samples import Samples
from card_scale.distributed import process_groups
from card_scale.errors import DataError


class DamagedSamples:
    """Decides, the same on every rank, which samples of an update do not count."""

    def __init__(self, allowed: int, problems: Mapping[int, DataError]):
        """``allowed`` as ``data.skip_damaged``; ``problems`` as :attr:`GlobalBatchLoader.problems`."""
        self.allowed, self.problems = allowed, problems
        self.left_out = 0
        """Of the whole run's samples, since the command was started."""

    def leave_out(self, samples: Samples, step: int) -> Samples:
        """Return an update's samples of this rank, with those marked that a rank of its tensor x pipeline group could
        not read. Collective where any are allowed.

        Raises DataError, on all ranks, where there are too many by now.
        """
        if samples.valid is None:
            return samples
        valid = samples.valid.to(torch.int32)
        dist.all_reduce(valid, op=dist.ReduceOp.MIN, group=process_groups.model_group())
        count = (1 - valid).sum()
        dist.all_reduce(count, group=process_groups.data_group())
        if not count:
            return samples
        self.left_out += int(count)
        mine = {int(sample): str(self.problems[int(sample)]) for sample in samples.sample_ids[~samples.valid]}
        gathered: list[dict[int, str]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(gathered, mine)
        problems = {sample: problem for found in gathered for sample, problem in found.items()}
        said = "; ".join(f"sample {sample}: {problem}" for sample, problem in sorted(problems.items()))
        if self.left_out > self.allowed:
            raise DataError(f"step {step}: {said}; {self.left_out} samples by now, data.skip_damaged {self.allowed}")
        if process_groups.is_main_rank():
            print(f"warning: step {step}: left out {int(count)} samples: {said}", file=sys.stderr, flush=True)
        counts = valid.bool()
        return samples._replace(valid=counts, tokens=samples.tokens * counts[:, None])
