"""Whether an arm's step fits into memory, asked before anything is allocated."""

import os

import psutil
import torch

from card_scale.benchmark.arms import Arm, config_of, with_sizes
from card_scale.config import Config
from card_scale.cost.memory import step_memory
from card_scale.distributed.parallel_dims import ParallelDims
from card_scale.engine.selection import engine_kind
from card_scale.errors import ConfigurationError


def available_bytes() -> int:
    """Return the bytes that this rank may still take: of its GPU, or its share of the machine's memory."""
    if torch.cuda.is_available():
        # Asked before the ranks take their GPUs; a rank without one is refused when they do.
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.cuda.mem_get_info(local_rank % torch.cuda.device_count())[0]
    return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def check_fits(arm: Arm, base: Config, layout: ParallelDims, vocabulary_rows: int, available: int) -> None:
    """Raise ConfigurationError if a step of ``arm`` would not fit into ``available`` bytes, saying what would."""
    model, train = base.model, base.train
    needed = _needed(config_of(arm, base), layout, vocabulary_rows)
    if needed > available:
        raise ConfigurationError(
            f"arm {arm.name} at model.length {model.length} and train.micro_batch {train.micro_batch} needs about "
            f"{needed / 2**30:.3g} GiB on a rank, of which {available / 2**30:.3g} GiB are free; "
            + _what_fits(arm, base, layout, vocabulary_rows, available)
        )


def _needed(config: Config, layout: ParallelDims, vocabulary_rows: int) -> float:
    stage, on_gpu = engine_kind(config).zero_stage(config), torch.cuda.is_available()
    return step_memory(config, layout, stage, vocabulary_rows, on_gpu=on_gpu).total


def _what_fits(arm: Arm, base: Config, layout: ParallelDims, vocabulary_rows: int, available: int) -> str:
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
        if _needed(config_of(arm, sizes), layout, vocabulary_rows) <= available:
            return f"model.length {length} with train.micro_batch {micro_batch} would fit"
