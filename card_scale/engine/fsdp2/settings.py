"""What FSDP2 is asked for and cannot do."""

from card_scale.config import Config
from card_scale.distributed.parallel_dims import ParallelDims
from card_scale.errors import ConfigurationError


def zero_stage(_config: Config) -> int:
    """Return 3: weights, gradients and states are always sharded."""
    return 3


def check(config: Config, _dims: ParallelDims) -> None:
    """Raise ConfigurationError for keys that only the other engine has."""
    parallel = config.parallel
    if parallel.zero not in (None, 3):
        raise ConfigurationError(
            f"parallel.zero is {parallel.zero} but parallel.engine fsdp2 always shards fully; leave parallel.zero out"
        )
    if parallel.deepspeed is not None:
        raise ConfigurationError(
            f"parallel.deepspeed is {parallel.deepspeed!r} but parallel.engine is fsdp2; use one of the two"
        )
