"""Reading the run configuration from YAML and dotted overrides: what does not fit the schema is an error.

Nothing here imports torch before everything but the objective has been read, so that mistakes are refused at once.
"""

import dataclasses
import math
import os
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import yaml

from card_scale.config import strict_yaml
from card_scale.config.overrides import nearest, parse_overrides
from card_scale.config.schema import Config, FilePath
from card_scale.errors import CommandLineError, ConfigurationError
from card_scale.objectives import registry

if TYPE_CHECKING:
    from card_scale.objectives.base import Objective


def load(path: str | Path, overrides: list[str]) -> Config:
    """Read a YAML file and apply overrides (``group.key=value`` or Megatron's ``--option value``), in order.

    Raises ConfigurationError naming the file or key, the value and what would be valid, and CommandLineError for an
    override that is none.
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
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigurationError(f"configuration file {path} cannot be read: {error}") from None
    if content is None:
        raise ConfigurationError(f"configuration file {path} is empty")
    if not isinstance(content, dict):
        raise ConfigurationError(f"configuration file {path} holds {type(content).__name__}, not groups of keys")
    for group, keys in content.items():
        _check_group(group, origin)
        if not isinstance(keys, dict):
            raise ConfigurationError(f"{origin}: {group} holds {keys!r}, not keys of that group")
        tree[group] = {key: _Given(value, origin) for key, value in keys.items()}
    for dotted, value in parse_overrides(overrides):
        group, _, key = dotted.partition(".")
        _check_group(group, "command line")
        tree.setdefault(group, {})[key] = _Given(value, "command line")
    objective = tree.pop("objective", {})
    groups = {group: _group(group, keys) for group, keys in tree.items()}
    return Config(**groups, objective=_objective(objective))


def stated_run_dir(path: str | Path, overrides: list[str]) -> str | None:
    """Return ``run.dir`` of a configuration that is refused for something else; None where that cannot be told."""
    try:
        content = strict_yaml.load(Path(path).read_text(encoding="utf-8"))
        stated = dict(parse_overrides(overrides))
    except (yaml.YAMLError, UnicodeDecodeError, OSError, ConfigurationError, CommandLineError):
        return None
    run = content.get("run") if isinstance(content, dict) else None
    found = stated.get("run.dir", run.get("dir") if isinstance(run, dict) else None)
    return os.path.expanduser(found) if isinstance(found, str) and found else None


class _Given(NamedTuple):
    """A value as it was given, and where."""

    value: Any
    origin: str


def _group(group: str, given: Mapping[str, _Given]) -> Any:
    """Return a group of the schema with the given keys."""
    kind = typing.get_type_hints(Config, localns={"Objective": object})[group]
    hints = typing.get_type_hints(kind, include_extras=True)
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
    value = tuple(item.value) if isinstance(item.value, list) else item.value
    if all(value != field.default for field in holders.values()):
        listed = " and ".join(holders)
        raise ConfigurationError(
            f"{item.origin}: objective.{key} is {item.value!r}, but it is a key of {listed} and objective.name is "
            f"{name}; leave it out, or choose another objective.name"
        )


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


def _convert_list(kinds: tuple[Any, ...], value: Any) -> tuple[Any, str]:
    """The same for a list: of two numbers, or of any number of whole ones."""
    of_any_length = kinds[-1] is ...
    expected = "a list of whole numbers" if of_any_length else "a list of two numbers"
    if not isinstance(value, list | tuple) or not (of_any_length or len(value) == len(kinds)):
        return _INVALID, expected
    numbers = [_convert(kinds[0], one)[0] for one in value]
    return (_INVALID if _INVALID in numbers else tuple(numbers)), expected


def _convert(hint: Any, value: Any) -> tuple[Any, str]:
    """Return (value as the hinted type or _INVALID, what the type is called)."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        inner = next(a for a in typing.get_args(hint) if a is not type(None))
        if value is None or value in ("none", "None"):
            return None, ""
        converted, expected = _convert(inner, value)
        return converted, f"{expected} or null"
    if origin is Literal:
        choices = typing.get_args(hint)
        return (value if value in choices else _INVALID), " | ".join(map(str, choices))
    if origin is tuple:
        return _convert_list(typing.get_args(hint), value)
    if hint is bool:
        return (value if isinstance(value, bool) else _INVALID), "true or false"
    if hint is int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if isinstance(value, float) and value.is_integer():  # 1e6
            return int(value), ""
        return (value if whole else _INVALID), "a whole number"
    if hint is float:
        given = isinstance(value, int | float) and not isinstance(value, bool)
        try:
            number = float(value) if given else math.nan
        except OverflowError:
            number = math.nan
        return (number if math.isfinite(number) else _INVALID), "a number"
    if not isinstance(value, str):
        return _INVALID, "text"
    return (os.path.expanduser(value) if hint == FilePath else value), ""
