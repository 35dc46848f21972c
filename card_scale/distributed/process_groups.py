"""Process groups: forming them for the parallel dims, and the questions that the rest of the code asks of them."""

import datetime
import os
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from card_scale.distributed import cpu_backend, cpu_memory
from card_scale.distributed.parallel_dims import ParallelDims
from card_scale.errors import CardScaleError, OwnRankError

T = TypeVar("T")


def initialize(dims: ParallelDims, timeout_seconds: int) -> None:
    """Join the job and form Megatron's groups: NCCL where the machine has GPUs, gloo otherwise."""
    timeout = datetime.timedelta(seconds=timeout_seconds)
    if torch.cuda.is_available():
        local_rank, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local_rank >= gpus:
            raise OwnRankError(
                f"rank {local_rank} of this machine has no GPU of its own ({gpus} here); start at most {gpus} ranks, "
                'or hide the GPUs with CUDA_VISIBLE_DEVICES="" to run on CPU'
            )
        torch.cuda.set_device(local_rank)
    cpu_backend.install()
    if not torch.cuda.is_available():
        cpu_memory.keep_freed_memory()
    if not dist.is_initialized():
        _join(timeout)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=dims.tensor,
        pipeline_model_parallel_size=dims.pipeline,
        virtual_pipeline_model_parallel_size=dims.virtual_pipeline if dims.virtual_pipeline > 1 else None,
        distributed_timeout_minutes=-(-timeout_seconds // 60),
        create_gloo_process_groups=False,
    )


def _join(timeout: datetime.timedelta) -> None:
    """Form the world group from torchrun's variables; without them this process is the whole world."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
        return
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")  # DeepSpeed reads them too
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)


def destroy() -> None:
    """Leave Megatron's groups and the job."""
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


tensor_group = parallel_state.get_tensor_model_parallel_group
pipeline_group = parallel_state.get_pipeline_model_parallel_group
data_group = parallel_state.get_data_parallel_group
model_group = parallel_state.get_model_parallel_group
"""The tensor x pipeline group: the ranks that together hold one replica of the model and see the same data."""


def is_main_rank() -> bool:
    """Whether this rank speaks for the job."""
    return dist.get_rank() == 0


def by_main_rank(action: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Have the main rank do something; return what it gives, on every rank. Collective over ``group``, by default all.

    One rank decides, so that a file system that shows ranks different states cannot split the job. Its CardScaleError
    or OSError is raised on every rank: the others would wait for it.
    """
    outcome: list = [None, None]
    if dist.get_rank(group) == 0:
        try:
            outcome = [action(), None]
        except (CardScaleError, OSError) as error:
            outcome = [None, error]
    dist.broadcast_object_list(outcome, group=group, group_src=0)
    value, error = outcome
    if error is not None:
        raise error
    return value


def global_rank() -> int:
    """Return this rank's number in the whole job."""
    return dist.get_rank()


def tensor_rank() -> int:
    return parallel_state.get_tensor_model_parallel_rank()


def pipeline_rank() -> int:
    return parallel_state.get_pipeline_model_parallel_rank()


def data_rank() -> int:
    return parallel_state.get_data_parallel_rank()


def tied_embedding_group() -> dist.ProcessGroup | None:
    """Return the group of the first and last pipeline stage, or None on ranks of the stages between."""
    group = parallel_state.get_embedding_group(check_initialized=False)
    return group if dist.get_rank() in dist.get_process_group_ranks(group) else None
