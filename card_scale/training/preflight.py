"""What can be refused of a run before it takes any memory or forms any process group."""

import importlib.util

from card_scale.config import Config
from card_scale.distributed import parallel_dims
from card_scale.distributed.parallel_dims import ParallelDims
from card_scale.engine.selection import engine_kind
from card_scale.errors import ConfigurationError


def check(config: Config, world_size: int) -> ParallelDims:
    """Return the layout of a run on ``world_size`` ranks.

    Raises ConfigurationError where the layout does not fit the world or the batch, the engine cannot do what is asked,
    no attention kernel computes the objective's kind on this machine's device, or wandb is asked for and missing.
    """
    # Only here: planners import this module before there is anything to check.
    from card_scale.distributed.device import current_device
    from card_scale.model.attention.selection import resolve_backend

    if config.run.wandb is not None and importlib.util.find_spec("wandb") is None:
        raise ConfigurationError(
            f"run.wandb is {config.run.wandb!r}, but wandb is not installed: pip install wandb, or leave the key out"
        )
    dims = parallel_dims.plan(config, world_size)
    engine_kind(config).check(config, dims)
    resolve_backend(config.objective.attention, config.model.attention_backend, current_device().type)
    return dims
