"""Reading the run configuration from YAML and dotted overrides: what does not fit the schema is an error.

Nothing here imports torch before everything but the objective has been read, so that mistakes are refused at once.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import yaml

from card_scale.config import strict_yaml
from card_scale.config.schema import Config
from card_scale.errors import ConfigurationError
from card_scale.objectives import registry

if TYPE_CHECKING:
    from card_scale.objectives.base import Objective

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
    config = read(path, overrides)
    config.check()
    return config


def read(path: str | Path, overrides: list[str]) -> Config:
    """As :func:`load`, but of a run that need not be possible: of an imported model only the model says something."""
    tree: dict[str, dict[str, _Given]] = {}
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
        _check_group(group, origin)
        if not isinstance(keys, dict):
            raise ConfigurationError(f"{origin}: {group} holds {keys!r}, not keys of that group")
        tree[group] = {key: _Given(value, origin) for key, value in keys.items()}
    for dotted, value in _parse_overrides(overrides):
        group, _, key = dotted.partition(".")
        _check_group(group, "command line")
        tree.setdefault(group, {})[key] = _Given(value, "command line")
    objective = tree.pop("objective", {})
    groups = {group: _group(group, keys) for group, keys in tree.items()}
    return Config(**groups, objective=_objective(objective))


class _Given(NamedTuple):
    """A value as it was given, and where."""

    value: Any
    origin: str


def _group(group: str, given: Mapping[str, _Given]) -> Any:
    """Return a group of the schema with the given keys."""
    kind = typing.get_type_hints(Config, localns={"Objective": object})[group]
    hints = typing.get_type_hints(kind)
    return kind(**{key: _typed(group, key, hints, item) for key, item in given.items()})


def _objective(given: Mapping[str, _Given]) -> "Objective":
    """Return the objective called ``name`` with its keys.

    A key of another objective is refused, unless it has that one's default: nothing would look at it.
    """
    name = given["name"] if "name" in given else _Given(registry.DEFAULT, "")
    if not isinstance(name.value, str):
        raise ConfigurationError(f"{name.origin}: objective.name is {name.value!r}; it takes text")
    try:
        kind = registry.objective_class(name.value)
    except ConfigurationError as error:
        raise ConfigurationError(f"{name.origin}: {error}") from None
    own = registry.keys(kind)
    hints = typing.get_type_hints(kind)
    values = {}
    for key, item in given.items():
        if key in own:
            values[key] = _typed("objective", key, hints, item)
        elif key != "name":
            _check_key_of_others(key, item, name.value, own)
    return kind(**values)


def _check_key_of_others(key: str, item: _Given, name: str, own: Iterable[str]) -> None:
    """Raise unless ``key`` belongs to another objective than ``name`` and has its default there."""
    others = registry.keys_of_others(name)
    holders = {other: keys[key] for other, keys in others.items() if key in keys}
    if not holders:
        hint = nearest(key, {"name", *own, *(key for keys in others.values() for key in keys)})
        raise ConfigurationError(f"{item.origin}: unknown key objective.{key}{hint}")
    if all(item.value != field.default for field in holders.values()):
        listed = " and ".join(holders)
        raise ConfigurationError(
            f"{item.origin}: objective.{key} is {item.value!r}, but it is a key of {listed} and objective.name is "
            f"{name}; leave it out, or choose another objective.name"
        )


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


def nearest(name: str, valid: Any) -> str:
    """Return a hint with the nearest valid name, or with all of them where none is near."""
    near = difflib.get_close_matches(str(name), list(valid), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else f"; valid: {', '.join(sorted(valid))}"


def _check_group(group: str, origin: str) -> None:
    groups = [field.name for field in dataclasses.fields(Config)]
    if group not in groups:
        raise ConfigurationError(f"{origin}: unknown group {group!r}{nearest(group, groups)}")


def _typed(group: str, key: str, hints: Mapping[str, Any], item: _Given) -> Any:
    """Return the value converted to the key's type, or raise naming key, value and type."""
    if key not in hints:
        raise ConfigurationError(f"{item.origin}: unknown key {group}.{key}{nearest(key, hints)}")
    converted, expected = _convert(hints[key], item.value)
    if converted is _INVALID:
        raise ConfigurationError(f"{item.origin}: {group}.{key} is {item.value!r}; it takes {expected}")
    return converted


_INVALID = object()


def _convert(hint: Any, value: Any) -> tuple[Any, str]:
    """Return (value as the hinted type or _INVALID, what the type is called)."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        inner = next(a for a in typing.get_args(hint) if a is not type(None))
        if value is None:
            return None, ""
        converted, expected = _convert(inner, value)
        return converted, f"{expected} or null"
    if origin is Literal:
        choices = typing.get_args(hint)
        return (value if value in choices else _INVALID), " | ".join(map(str, choices))
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
