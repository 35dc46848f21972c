"""Whether an arm's step fits into memory, asked before anything is allocated."""

import os

import psutil
import torch

from card_scale.benchmark.arms import Arm, config_of, with_sizes
from card_scale.config import Config
from card_scale.distributed.parallel_dims import ParallelDims
from card_scale.errors import ConfigurationError
from card_scale.training.memory_fit import Memory, needed_bytes


def free_memory() -> Memory:
    """Return what this rank may still take: of its GPU, or its share of the machine's memory."""
    if torch.cuda.is_available():
        # Asked before the ranks take their GPUs; a rank without one is refused when they do.
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        free, total = torch.cuda.mem_get_info(local_rank % torch.cuda.device_count())
        return Memory(free, "free", is_host=False, device_bytes=total)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return Memory(psutil.virtual_memory().available / here, "free", is_host=True)


def check_fits(arm: Arm, base: Config, layout: ParallelDims, vocabulary_rows: int, memory: Memory) -> None:
    """Raise ConfigurationError if a step of ``arm`` would not fit into ``memory``, saying what would."""
    model, train = base.model, base.train
    needed = needed_bytes(config_of(arm, base), layout.world_size, vocabulary_rows, memory)
    if needed > memory.bytes:
        raise ConfigurationError(
            f"arm {arm.name} at model.length {model.length} and train.micro_batch {train.micro_batch} needs about "
            f"{needed / 2**30:.3g} GiB on a rank, of which {memory.bytes / 2**30:.3g} GiB are free; "
            + _what_fits(arm, base, layout, vocabulary_rows, memory)
        )


def _what_fits(arm: Arm, base: Config, layout: ParallelDims, vocabulary_rows: int, memory: Memory) -> str:
    """Say the largest micro-batch that fits at this length, or else the largest length, by halving either."""
    length, micro_batch = base.model.length, base.train.micro_batch
    while True:
        if micro_batch > 1:
            micro_batch //= 2
        else:
            length //= 2
        if length < max(2, arm.block) or (arm.block and length % arm.block):
            return "no length would fit with one sequence at a time; take a smaller model or shard it further"
        in_flight = micro_batch * layout.data * layout.pipeline
        sizes = with_sizes(base, length=length, micro_batch=micro_batch, global_batch=in_flight)
        if needed_bytes(config_of(arm, sizes), layout.world_size, vocabulary_rows, memory) <= memory.bytes:
            return f"model.length {length} with train.micro_batch {micro_batch} would fit"
