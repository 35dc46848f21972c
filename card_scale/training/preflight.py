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
    this machine's device has no such kernel of attention or loss, or wandb is asked for and missing.
    """
    # Only here: planners import this module before there is anything to check.
    from card_scale.distributed.device import current_device
    from card_scale.model.attention.selection import resolve_backend
    from card_scale.model.cross_entropy import selection

    # On every rank, though one uses it: the others would wait for it where the launcher does not end them.
    if config.run.wandb is not None and importlib.util.find_spec("wandb") is None:
        raise ConfigurationError(
            f"run.wandb is {config.run.wandb!r}, but wandb is not installed: pip install wandb, or leave the key out"
        )
    dims = parallel_dims.plan(config, world_size)
    engine_kind(config).check(config, dims)
    device_type = current_device().type
    resolve_backend(config.objective.attention, config.model.attention_backend, device_type)
    selection.check(config.model.loss_backend, device_type)
    return dims
