"""What the ranks of a run agree on between two updates."""

import torch
import torch.distributed as dist

from card_scale.data.digest import batch_digest
from card_scale.data.samples import Samples
from card_scale.distributed import process_groups
from card_scale.errors import DataError


def agree_to_stop(requested: bool) -> bool:
    """Return whether any rank was asked to stop, the same answer on every rank. Collective, without the device."""
    flag = torch.tensor([int(requested)])
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)


def check_same_samples(samples: Samples, step: int) -> None:
    """Raise DataError if the ranks of this tensor x pipeline group hold different samples. Collective."""
    group = process_groups.model_group()
    mine = torch.tensor([batch_digest(samples.tensors())], dtype=torch.int64)
    digests = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(digests, mine, group=group)
    if any(digest != mine for digest in digests):
        ranks = dist.get_process_group_ranks(group)
        seen = ", ".join(f"rank {rank}: {digest.item():016x}" for rank, digest in zip(ranks, digests, strict=True))
        raise DataError(f"step {step}: ranks of one tensor x pipeline group read different batches ({seen})")
