"""Whether a training step fits into memory, estimated before anything is allocated."""

import os

import psutil
import torch

from card_scale.benchmark.arms import Arm, config_of, with_sizes
from card_scale.config import Config
from card_scale.distributed import parallel_dims as topology
from card_scale.errors import ConfigurationError
from card_scale.training.dry_run import activation_bytes, state_bytes
from card_scale.training.throughput import counts_of


def step_bytes(config: Config, layout: topology.Topology, vocabulary_rows: int) -> float:
    """Return an estimate of the bytes that a step of ``config`` holds at its peak on the rank that holds most.

    Model states and the layers' activations as ``--dry-run`` estimates them; a micro-batch's logits and their gradient;
    with the dense backend the mask [2L, 2L], boolean and in the compute type, which is what torch makes of it in front
    of its fused kernels (none of them keeps the scores).
    """
    model, train = config.model, config.train
    item = 2 if train.precision == "bf16" else 4
    states = state_bytes(config, layout, counts_of(model, vocabulary_rows).total)
    logits = 2 * train.micro_batch * model.length * vocabulary_rows * item / layout.tensor
    mask = (1 + item) * (2 * model.length) ** 2 if model.attention_backend == "dense" else 0
    return states + activation_bytes(config, layout) + logits + mask


def available_bytes() -> int:
    """Return the bytes that this rank may still take: of its GPU, or its share of the machine's memory."""
    if torch.cuda.is_available():
        # Asked before the ranks take their GPUs; a rank without one is refused when they do.
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.cuda.mem_get_info(local_rank % torch.cuda.device_count())[0]
    return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def check_fits(arm: Arm, base: Config, layout: topology.Topology, vocabulary_rows: int, available: int) -> None:
    """Raise ConfigurationError if a step of ``arm`` would not fit into ``available`` bytes, saying what would."""
    model, train = base.model, base.train
    needed = step_bytes(config_of(arm, base), layout, vocabulary_rows)
    if needed > available:
        raise ConfigurationError(
            f"arm {arm.name} at model.length {model.length} and train.micro_batch {train.micro_batch} needs about "
            f"{needed / 2**30:.3g} GiB on a rank, of which {available / 2**30:.3g} GiB are free; "
            + _what_fits(arm, base, layout, vocabulary_rows, available)
        )


def _what_fits(arm: Arm, base: Config, layout: topology.Topology, vocabulary_rows: int, available: int) -> str:
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
        if step_bytes(config_of(arm, sizes), layout, vocabulary_rows) <= available:
            return f"model.length {length} with train.micro_batch {micro_batch} would fit"
