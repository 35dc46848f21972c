"""What a configuration must satisfy besides its types: the range of each key, and which keys go together."""

import itertools
from typing import TYPE_CHECKING

from card_scale.errors import ConfigurationError

if TYPE_CHECKING:  # the configuration checks itself
    from card_scale.config.schema import Config


def check(config: "Config") -> None:
    """Raise ConfigurationError naming the key, its value and what would be valid."""
    _check_ranges(config)
    _check_combinations(config)
    _check_guard(config)
    _check_time_limits(config)
    config.objective.check(config.model.length)
    config.objective.attention.check_layers(config.model.layers)


def _check_ranges(config: "Config") -> None:
    def require(key: str, valid: bool, expected: str) -> None:
        if not valid:
            group, _, name = key.partition(".")
            raise ConfigurationError(f"{key} is {getattr(getattr(config, group), name)!r}; it must be {expected}")

    for group, names in {
        "model": ("layers", "hidden", "heads", "ffn", "length"),
        "parallel": ("tensor", "pipeline", "virtual_pipeline"),
        "train": ("global_batch", "micro_batch"),
        "run": ("timeout_seconds",),
    }.items():
        for name in names:
            require(f"{group}.{name}", getattr(getattr(config, group), name) >= 1, "at least 1")
    require("model.length", config.model.length >= 2, "at least 2")
    require("model.dropout", 0.0 <= config.model.dropout < 1.0, "in [0, 1)")
    require("run.dir", bool(config.run.dir), "a directory name")
    require("run.max_hours", config.run.max_hours is None or config.run.max_hours > 0, "above 0")
    require("run.stop_before_end", config.run.stop_before_end >= 0, "0 or more")
    require("run.seed", 0 <= config.run.seed < 2**63, "in [0, 2^63)")
    require("model.kv_heads", config.model.kv_heads is None or config.model.kv_heads >= 1, "at least 1")
    require("model.rotary_base", config.model.rotary_base > 1.0, "above 1")
    require("model.norm_epsilon", config.model.norm_epsilon > 0.0, "above 0")
    require("data.path", bool(config.data.path), "a dataset directory written by tools/data.py build")
    require("data.validation_samples", config.data.validation_samples >= 0, "0 (all) or more")
    require("data.train_samples", config.data.train_samples >= 0, "0 (none) or more")
    unique_tokens, epochs = config.data.unique_tokens, config.data.epochs
    require("data.unique_tokens", unique_tokens is None or unique_tokens > config.model.length, "above model.length")
    require("data.skip_damaged", config.data.skip_damaged >= 0, "0 (none) or more")
    require("data.epochs", epochs is None or epochs > 0, "above 0")
    require("parallel.zero", config.parallel.zero in (None, 0, 1, 2, 3), "0, 1, 2 or 3")
    require("optimizer.lr", config.optimizer.lr > 0, "above 0")
    require("optimizer.min_lr", 0 <= config.optimizer.min_lr <= config.optimizer.lr, "between 0 and optimizer.lr")
    require("optimizer.warmup_steps", config.optimizer.warmup_steps >= 0, "0 or more")
    require("optimizer.weight_decay", config.optimizer.weight_decay >= 0, "0 or more")
    require("optimizer.betas", all(0 <= b < 1 for b in config.optimizer.betas), "two numbers in [0, 1)")
    require("optimizer.eps", config.optimizer.eps > 0, "above 0")
    require("optimizer.clip", config.optimizer.clip >= 0, "0 (no clipping) or more")
    require("optimizer.ema", 0 <= config.optimizer.ema < 1, "in [0, 1)")
    require("train.steps", config.train.steps is None or config.train.steps >= 1, "at least 1")
    for name in ("log_every", "eval_every", "save_every"):
        require(f"train.{name}", getattr(config.train, name) >= 0, "0 (only at the end) or more")
    require(
        "train.keep_last",
        config.train.keep_last == 0 or config.train.keep_last >= 2,
        "0 (all) or at least 2: the newest checkpoint may turn out damaged, and a resume needs one before it",
    )
    require("train.keep_every", config.train.keep_every >= 0, "0 (none) or more")
    require("train.failed_saves", config.train.failed_saves >= 0, "0 or more")
    require("guard.spike", config.guard.spike >= 0, "0 (none) or more")
    require("guard.window", config.guard.window >= 16, "at least 16")
    require("guard.patience", config.guard.patience >= 0, "0 or more")
    require("guard.rollbacks", config.guard.rollbacks >= 0, "0 or more")


def _check_guard(config: "Config") -> None:
    if config.guard.policy != "rollback":
        return
    for key, value in {"guard.rollbacks": config.guard.rollbacks, "train.save_every": config.train.save_every}.items():
        if value == 0:
            raise ConfigurationError(f"guard.policy is rollback, but {key} is 0: there is nothing to go back to")


def _check_time_limits(config: "Config") -> None:
    """The first to see a hang must be who can say where it is: data before step before the collective."""
    limits = config.watchdog.seconds(config.run.timeout_seconds)
    for phase, limit in limits.items():
        if limit <= 0:
            raise ConfigurationError(f"watchdog.{phase} is {limit:g}; it must be above 0")
    order = {
        "watchdog.data": limits["data"],
        "watchdog.step": limits["step"],
        "run.timeout_seconds": config.run.timeout_seconds,
    }
    for lower, upper in itertools.pairwise(order):
        if order[lower] >= order[upper]:
            raise ConfigurationError(
                f"{lower} is {order[lower]:g} s and {upper} {order[upper]:g} s; the first must be shorter, or the "
                "second ends the job before it is known who hangs"
            )


def _check_combinations(config: "Config") -> None:
    model, parallel, train = config.model, config.parallel, config.train
    if model.hidden % model.heads:
        raise ConfigurationError(f"model.hidden {model.hidden} is not divisible by model.heads {model.heads}")
    if model.hidden // model.heads % 2:
        raise ConfigurationError(
            f"model.hidden / model.heads is {model.hidden // model.heads}; rotary positions need an even head size"
        )
    if model.heads % model.key_value_heads:
        raise ConfigurationError(f"model.heads {model.heads} is not divisible by model.kv_heads {model.kv_heads}")
    sizes = {"model.heads": model.heads, "model.ffn": model.ffn, "model.kv_heads": model.key_value_heads}
    for key, size in sizes.items():
        if size % parallel.tensor:
            raise ConfigurationError(f"{key} {size} is not divisible by parallel.tensor {parallel.tensor}")
    chunks = parallel.pipeline * parallel.virtual_pipeline
    if model.layers % chunks:
        raise ConfigurationError(
            f"model.layers {model.layers} is not divisible by parallel.pipeline {parallel.pipeline} "
            f"x parallel.virtual_pipeline {parallel.virtual_pipeline}"
        )
    if parallel.virtual_pipeline > 1 and parallel.pipeline == 1:
        raise ConfigurationError(
            f"parallel.virtual_pipeline {parallel.virtual_pipeline} interleaves pipeline stages, "
            "but parallel.pipeline is 1; set parallel.pipeline to 2 or more"
        )
    if parallel.sequence and parallel.tensor == 1:
        raise ConfigurationError("parallel.sequence is true but parallel.tensor is 1; it needs 2 or more")
    if parallel.sequence and model.length % parallel.tensor:
        raise ConfigurationError(
            f"model.length {model.length} is not divisible by parallel.tensor {parallel.tensor}, "
            "which parallel.sequence needs"
        )
    if parallel.recompute == "selective" and train.compile is False:
        raise ConfigurationError(
            "parallel.recompute is selective but train.compile is false: compiled layers alone recompute selectively. "
            "Leave train.compile out, or set parallel.recompute to none or full"
        )
    if train.steps is None and config.data.epochs is None:
        raise ConfigurationError("neither train.steps nor data.epochs is given; set one of the two")
    if train.global_batch % train.micro_batch:
        raise ConfigurationError(
            f"train.global_batch {train.global_batch} is not divisible by train.micro_batch {train.micro_batch}"
        )
    if train.keep_every and train.save_every and train.keep_every % train.save_every:
        raise ConfigurationError(
            f"train.keep_every {train.keep_every} is not a multiple of train.save_every {train.save_every}: "
            "no checkpoint would be written at most of its multiples"
        )
