"""DeepSpeed's JSON file: "auto" values filled from the run's configuration, contradictions refused.

Pure: a dictionary in, a dictionary out. What card_scale decides itself (optimizer, schedule, batch sizes) may stand in
the file only as "auto" or with the run's own value.
"""

import json
from pathlib import Path
from typing import Any

from card_scale.config import Config, nearest
from card_scale.distributed.parallel_dims import ParallelDims
from card_scale.errors import ConfigurationError

ALLOWED_KEYS = {
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "bf16",
    "zero_optimization",
    "communication_data_type",
    "wall_clock_breakdown",
    "steps_per_print",
    "memory_breakdown",
    "comms_logger",
    "aio",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
}
"""Top-level keys with a meaning here; others (optimizer, scheduler, fp16, ...) would contradict the configuration."""

ALLOWED_ZERO_KEYS = {
    "stage",
    "allgather_bucket_size",
    "allgather_partitions",
    "contiguous_gradients",
    "offload_optimizer",
    "offload_param",
    "overlap_comm",
    "reduce_bucket_size",
    "reduce_scatter",
    "stage3_gather_16bit_weights_on_model_save",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
    "stage3_param_persistence_threshold",
    "stage3_prefetch_bucket_size",
    "sub_group_size",
}
"""Keys of zero_optimization that keep parity; round_robin_gradients and hierarchical partitioning do not."""


def read(path: str) -> dict[str, Any]:
    """Return the file's dictionary.

    Raises ConfigurationError, naming the file, where it is missing, no JSON object, or holds a key that is unknown
    here, a stage that does not exist or what would refuse card_scale's optimizer.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"parallel.deepspeed: file {path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigurationError(f"parallel.deepspeed: file {path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ConfigurationError(f"parallel.deepspeed: file {path} holds {type(content).__name__}, not a JSON object")
    for key, value in content.items():
        if key not in ALLOWED_KEYS:
            raise ConfigurationError(f"{path}: key {key!r} is not supported{nearest(key, ALLOWED_KEYS)}")
        if key in ("zero_optimization", "bf16") and not isinstance(value, dict):
            raise ConfigurationError(f"{path}: {key} is {value!r}, not a JSON object")
        if key == "zero_allow_untested_optimizer" and value not in ("auto", True):
            raise ConfigurationError(
                f"{path}: {key} is {value!r}; it must be true or auto: the optimizer is card_scale's own"
            )
    zero = content.get("zero_optimization", {})
    for key in zero:
        if key not in ALLOWED_ZERO_KEYS:
            raise ConfigurationError(
                f"{path}: key zero_optimization.{key} is not supported{nearest(key, ALLOWED_ZERO_KEYS)}"
            )
    if zero.get("stage", "auto") not in ("auto", 0, 1, 2, 3):
        raise ConfigurationError(f"{path}: zero_optimization.stage is {zero['stage']!r}; it must be 0, 1, 2, 3 or auto")
    return content


def zero_stage(config: Config) -> int:
    """Return the ZeRO stage of a deepspeed run: ``parallel.zero``, else the JSON file's, else 3."""
    if config.parallel.zero is not None:
        return config.parallel.zero
    if config.parallel.deepspeed is not None:
        stage = read(config.parallel.deepspeed).get("zero_optimization", {}).get("stage", "auto")
        if stage != "auto":
            return stage
    return 3


def offloaded(config: Config) -> frozenset[str]:
    """Return what the JSON file offloads to the host: "optimizer" and its gradients, "weights", both or nothing."""
    if config.parallel.deepspeed is None:
        return frozenset()
    zero = read(config.parallel.deepspeed).get("zero_optimization", {})
    causes = {"offload_optimizer": ("optimizer", "gradients"), "offload_param": ("weights",)}
    return frozenset(
        cause
        for key, names in causes.items()
        if isinstance(zero.get(key), dict) and zero[key].get("device", "none") != "none"
        for cause in names
    )


def resolve(config: Config, data_parallel: int, stage_parameters: int) -> dict[str, Any]:
    """Return the dictionary for ``deepspeed.initialize``.

    Args:
        config: the run's configuration.
        data_parallel: data-parallel size.
        stage_parameters: parameters of this rank's pipeline stage, for the bucket sizes.

    Raises:
        ConfigurationError: for a file that :func:`read` refuses, or a value that is not the run's, naming both.
    """
    path = config.parallel.deepspeed
    content = read(path) if path is not None else {}
    zero = content.get("zero_optimization", {})
    stage = zero_stage(config)
    bf16 = config.train.precision == "bf16"
    micro_batch, global_batch = config.train.micro_batch, config.train.global_batch
    accumulation = global_batch // (micro_batch * data_parallel)
    fixed = {
        ("train_batch_size",): (global_batch, "train.global_batch"),
        ("train_micro_batch_size_per_gpu",): (micro_batch, "train.micro_batch"),
        ("gradient_accumulation_steps",): (
            accumulation,
            f"train.global_batch / (train.micro_batch x {data_parallel} data-parallel ranks)",
        ),
        ("gradient_clipping",): (config.optimizer.clip, "optimizer.clip"),
        ("bf16", "enabled"): (bf16, f"train.precision {config.train.precision}"),
        ("zero_optimization", "stage"): (stage, "parallel.zero"),
    }
    _check_equal(path, content, fixed)
    automatic = _automatic(stage_parameters, config.model.hidden)
    for key, value in zero.items():
        if value == "auto" and key not in automatic and key != "stage":
            raise ConfigurationError(
                f'{path}: zero_optimization.{key} is "auto"; only these can be: {", ".join(sorted(automatic))}, stage'
            )
    filled = {key: automatic[key] if value == "auto" else value for key, value in zero.items() if key != "stage"}
    passed_on = {key: value for key, value in content.items() if key not in {k[0] for k in fixed} and value != "auto"}
    resolved = {
        "steps_per_print": 10**9,
        "zero_force_ds_cpu_optimizer": False,
        **passed_on,
        "train_micro_batch_size_per_gpu": micro_batch,
        # The schedule owns the micro-batches: DeepSpeed sees one accumulation step, and step() is the boundary.
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.optimizer.clip,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {**automatic, **filled, "stage": stage},
    }
    if bf16:
        resolved["bf16"] = {**content.get("bf16", {}), "enabled": True}
        resolved["data_types"] = {"grad_accum_dtype": "fp32"}
        resolved.setdefault("communication_data_type", "fp32")
    return resolved


def _automatic(stage_parameters: int, hidden: int) -> dict[str, Any]:
    """Return the values of zero_optimization that "auto" stands for."""
    bucket = min(500_000_000, max(stage_parameters, 1))
    return {
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "stage3_prefetch_bucket_size": min(50_000_000, bucket),
        "stage3_param_persistence_threshold": 10 * hidden,
        "overlap_comm": False,
    }


def _check_equal(path: str | None, content: dict[str, Any], fixed: dict[tuple[str, ...], tuple[Any, str]]) -> None:
    """Raise where the file gives a value that is not the run's; ``fixed`` has (value, where it is from) by key."""
    for keys, (value, source) in fixed.items():
        found = content
        for key in keys:
            found = found.get(key, "auto") if isinstance(found, dict) else found
        if found not in ("auto", value):
            raise ConfigurationError(
                f"{path}: {'.'.join(keys)} is {found!r}, but {source} is {value!r}; make them equal"
            )


def check(config: Config, dims: ParallelDims) -> None:
    """Raise ConfigurationError for what DeepSpeed cannot do, and what :func:`resolve` would raise.

    That is before there is a model whose parameters could be counted.
    """
    stage = zero_stage(config)
    if config.parallel.virtual_pipeline > 1 and stage == 3:
        raise ConfigurationError(
            f"parallel.virtual_pipeline {config.parallel.virtual_pipeline} with ZeRO stage 3 is not supported (its "
            "gradients would be silently wrong); use parallel.zero 0, 1 or 2, or parallel.engine fsdp2"
        )
    if config.train.precision == "bf16" and stage == 0:
        raise ConfigurationError(
            "train.precision bf16 with ZeRO stage 0 is not supported (DeepSpeed keeps no float32 gradients there); "
            "use parallel.zero 1, 2 or 3, or parallel.engine fsdp2"
        )
    resolve(config, dims.data, stage_parameters=1)
