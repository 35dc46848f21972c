"""The run configuration: one typed tree, read from YAML and dotted overrides, every contradiction an error.

Nothing here imports torch, so ``--help``, ``--print-config`` and every refusal that needs no data answer at once.
"""

import dataclasses
import difflib
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from card_scale import config_checks, strict_yaml
from card_scale.errors import ConfigurationError


@dataclass(frozen=True)
class RunConfig:
    dir: str = "runs/default"
    """Run directory: checkpoints, metrics, TensorBoard."""
    seed: int = 1234
    """Seed of initialisation, data order and noise."""
    timeout_seconds: int = 600
    """Time limit of a collective; a rank that waits longer ends the job."""


@dataclass(frozen=True)
class ModelConfig:
    layers: int = 4
    """Transformer layers."""
    hidden: int = 192
    """Hidden size."""
    heads: int = 6
    """Attention heads; hidden / heads is the head size."""
    ffn: int = 512
    """Inner size of the gated feed-forward network."""
    length: int = 256
    """Context length L: input tokens of a sample."""
    tie_embeddings: bool = False
    """Use the input embedding as output head."""
    dropout: float = 0.0
    """Dropout on the embedding and on both residual branches of a layer."""
    attention_backend: Literal["auto", "sdpa", "flex", "split", "dense"] = "auto"
    """Kernel of attention. sdpa: torch's fused kernels (causal, bidirectional). flex: FlexAttention (GPU). split and
    dense: block diffusion in exact pieces, or with the whole mask. auto: the device's best."""


@dataclass(frozen=True)
class ObjectiveConfig:
    name: Literal["card", "ar", "mdlm", "bd3lm"] = "card"
    """Training objective."""
    tail_factor: float = 1.5
    """card: masks fall into the last tail_factor * N positions (N masks)."""
    decay: float = 0.5
    """card: decay p of the ambiguity S along the context."""
    beta: float = 1.0
    """card: offset in the weight 1 / (beta + S)."""
    reweight: bool = True
    """card: weight the loss by context; false gives every position weight 1."""
    masking: Literal["soft_tail", "uniform"] = "soft_tail"
    """card: where the masks fall."""
    min_noise: float = 0.0
    """card: lower end of the noise level's range."""
    max_noise: float = 1.0
    """card: upper end of the noise level's range."""
    block: int = 16
    """bd3lm: block size, a divisor of model.length."""
    min_mask: float = 0.001
    """bd3lm: lower end of the range of a block's mask rate."""
    max_mask: float = 1.0
    """bd3lm: upper end of the range of a block's mask rate."""
    search_interval: bool = False
    """bd3lm: take over the mask-rate interval that each evaluation finds to have the least variance."""
    resample: bool = True
    """Corrupt a sample anew in each epoch; false repeats the corruption of its first."""


@dataclass(frozen=True)
class DataConfig:
    path: str = ""
    """Dataset directory written by tools/data.py build."""
    validation: str | None = None
    """Dataset directory whose validation split is evaluated; by default data.path."""
    validation_samples: int = 0
    """Validation samples per evaluation; 0 takes them all."""
    train_samples: int = 0
    """Training samples, the first of the stream, that are evaluated beside them; 0 takes none."""
    unique_tokens: int | None = None
    """Keep only the first so many tokens of the training stream."""
    epochs: float | None = None
    """Training length in epochs, instead of train.steps."""
    reshuffle: bool = True
    """Permute the samples anew in each epoch."""


@dataclass(frozen=True)
class ParallelConfig:
    tensor: int = 1
    """Tensor-parallel size."""
    pipeline: int = 1
    """Pipeline-parallel size."""
    virtual_pipeline: int = 1
    """Model chunks per pipeline stage (interleaved 1F1B when above 1)."""
    sequence: bool = False
    """Sequence parallelism: shard activations between tensor-parallel regions along the sequence."""
    engine: Literal["deepspeed", "fsdp2"] = "deepspeed"
    """Sharding engine over the data-parallel ranks."""
    zero: int | None = None
    """DeepSpeed ZeRO stage 0-3 (default 3); under fsdp2 sharding is always full and only 3 is accepted."""
    deepspeed: str | None = None
    """DeepSpeed JSON file; "auto" values are filled from this configuration."""
    recompute: Literal["none", "full"] = "none"
    """Recompute each layer's activations in the backward pass."""


@dataclass(frozen=True)
class OptimizerConfig:
    lr: float = 3e-4
    """Peak learning rate."""
    min_lr: float = 0.0
    """Learning rate at the end of the schedule."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """Learning-rate schedule after warm-up."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; norms have none."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's betas."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    clip: float = 1.0
    """Largest global gradient norm; 0 does not clip."""
    ema: float = 0.0
    """Decay of the exponential moving average of the weights; 0 keeps none."""


@dataclass(frozen=True)
class TrainConfig:
    steps: int | None = None
    """Updates to make (or data.epochs)."""
    global_batch: int = 8
    """Sequences per update over all ranks."""
    micro_batch: int = 1
    """Sequences per data-parallel rank and forward pass."""
    log_every: int = 10
    """Steps between log lines."""
    eval_every: int = 0
    """Steps between evaluations; 0 evaluates before the first and after the last step."""
    save_every: int = 0
    """Steps between checkpoints; 0 saves at the end only."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the forward and backward pass; the optimizer always holds fp32 weights."""
    compile: bool = False
    """Compile each decoder layer as one graph (torch.compile); not with parallel.tensor above 1."""


@dataclass(frozen=True)
class Config:
    """The whole configuration of a run. Build it with :func:`load`; :meth:`check` has then passed."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    data: DataConfig = field(default_factory=DataConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def to_yaml(self) -> str:
        """Return the resolved configuration as YAML that :func:`load` reads back unchanged."""
        tree = dataclasses.asdict(self)
        tree["optimizer"]["betas"] = list(tree["optimizer"]["betas"])
        return yaml.safe_dump(tree, sort_keys=False)

    def check(self) -> None:
        """Raise ConfigurationError for values that are impossible whatever the world size."""
        config_checks.check(self)


MEGATRON_ALIASES = {
    "tensor-model-parallel-size": "parallel.tensor",
    "pipeline-model-parallel-size": "parallel.pipeline",
    "sequence-parallel": "parallel.sequence",
    "deepspeed-config": "parallel.deepspeed",
    "num-layers": "model.layers",
    "hidden-size": "model.hidden",
    "num-attention-heads": "model.heads",
    "ffn-hidden-size": "model.ffn",
    "seq-length": "model.length",
    "hidden-dropout": "model.dropout",
    "micro-batch-size": "train.micro_batch",
    "global-batch-size": "train.global_batch",
    "train-iters": "train.steps",
    "log-interval": "train.log_every",
    "eval-interval": "train.eval_every",
    "save-interval": "train.save_every",
    "bf16": "train.precision",
    "lr": "optimizer.lr",
    "min-lr": "optimizer.min_lr",
    "lr-decay-style": "optimizer.schedule",
    "lr-warmup-iters": "optimizer.warmup_steps",
    "weight-decay": "optimizer.weight_decay",
    "adam-eps": "optimizer.eps",
    "clip-grad": "optimizer.clip",
    "seed": "run.seed",
    "save": "run.dir",
    "data-path": "data.path",
}
"""Megatron-LM's long options and the keys they set."""

_MEGATRON_FLAGS = {"sequence-parallel": True, "bf16": "bf16"}
"""Options without a value, and the value that they set."""


def load(path: str | Path, overrides: list[str]) -> Config:
    """Read a YAML file and apply overrides (``group.key=value`` or Megatron's ``--option value``), in order.

    Raises ConfigurationError naming the file or key, the value and what would be valid.
    """
    tree: dict[str, dict[str, Any]] = {}
    origin = str(path)
    try:
        content = strict_yaml.load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"configuration file {path} does not exist") from None
    except (yaml.YAMLError, ValueError, OSError) as error:  # ValueError: no UTF-8, or a date such as 2026-13-45
        raise ConfigurationError(f"configuration file {path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ConfigurationError(f"configuration file {path} holds {type(content).__name__}, not groups of keys")
    for group, keys in content.items():
        _group_type(group, origin)
        if not isinstance(keys, dict):
            raise ConfigurationError(f"{origin}: {group} holds {keys!r}, not keys; valid: {_names(_group_type(group))}")
        tree[group] = {key: _typed(f"{group}.{key}", value, origin) for key, value in keys.items()}
    for dotted, value in _parse_overrides(overrides):
        group, _, key = dotted.partition(".")
        _group_type(group, "command line")
        tree.setdefault(group, {})[key] = _typed(dotted, value, "command line")
    config = Config(**{group: _group_type(group)(**keys) for group, keys in tree.items()})
    config.check()
    return config


def _parse_overrides(arguments: list[str]) -> list[tuple[str, Any]]:
    """Return (dotted key, YAML value) for each override."""
    pairs = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument.startswith("--"):
            name, has_value, text = argument[2:].partition("=")
            name = name.replace("_", "-")
            if name not in MEGATRON_ALIASES:
                raise ConfigurationError(f"unknown option {argument}{nearest(name, MEGATRON_ALIASES)}")
            if name in _MEGATRON_FLAGS and not has_value:
                pairs.append((MEGATRON_ALIASES[name], _MEGATRON_FLAGS[name]))
                continue
            if not has_value:
                if not rest:
                    raise ConfigurationError(f"option {argument} needs a value")
                text = rest.pop(0)
            key = MEGATRON_ALIASES[name]
        else:
            key, equals, text = argument.partition("=")
            if not equals:
                raise ConfigurationError(f"override {argument!r} is not of the form group.key=value")
        try:
            value = strict_yaml.load(text)
        except (yaml.YAMLError, ValueError):  # ValueError: a date such as 2026-13-45
            raise ConfigurationError(f"override {key}={text!r} is not a YAML value") from None
        pairs.append((key, value.lower() if key == "optimizer.schedule" and isinstance(value, str) else value))
    return pairs


def _names(group: type) -> str:
    return ", ".join(f.name for f in dataclasses.fields(group))


def nearest(name: str, valid: Any) -> str:
    """Return a hint with the nearest valid name, or with all of them where none is near."""
    near = difflib.get_close_matches(str(name), list(valid), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else f"; valid: {', '.join(sorted(valid))}"


def _group_type(group: str, origin: str = "") -> type:
    groups = typing.get_type_hints(Config)
    if group not in groups:
        raise ConfigurationError(f"{origin}: unknown group {group!r}{nearest(group, groups)}")
    return groups[group]


def _typed(dotted: str, value: Any, origin: str) -> Any:
    """Return the value converted to the key's type, or raise naming key, value and type."""
    group, _, key = dotted.partition(".")
    hints = typing.get_type_hints(_group_type(group, origin))
    if key not in hints:
        raise ConfigurationError(f"{origin}: unknown key {dotted}{nearest(key, hints)}")
    converted, expected = _convert(hints[key], value)
    if converted is _INVALID:
        raise ConfigurationError(f"{origin}: {dotted} is {value!r}; it takes {expected}")
    return converted


_INVALID = object()


def _convert(hint: Any, value: Any) -> tuple[Any, str]:
    """Return (value as the hinted type or _INVALID, what the type is called)."""
    origin = typing.get_origin(hint)
    if origin is types.UnionType:
        inner = next(a for a in typing.get_args(hint) if a is not type(None))
        if value is None:
            return None, ""
        converted, expected = _convert(inner, value)
        return converted, f"{expected} or null"
    if origin is Literal:
        choices = typing.get_args(hint)
        return (value if value in choices else _INVALID), " | ".join(choices)
    if origin is tuple:
        valid = isinstance(value, list | tuple) and len(value) == 2
        numbers = [_convert(float, v)[0] for v in value] if valid else [_INVALID]
        return (_INVALID if _INVALID in numbers else tuple(numbers)), "a list of two numbers"
    if hint is bool:
        return (value if isinstance(value, bool) else _INVALID), "true or false"
    if hint is int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return (value if whole else _INVALID), "a whole number"
    if hint is float:
        # YAML reads 3e-4 (no dot) as text; whoever writes it means the number.
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        return (number if math.isfinite(number) else _INVALID), "a number"
    return (value if isinstance(value, str) else _INVALID), "text"
