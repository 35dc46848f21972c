"""The list of objectives, by the value of ``objective.name``. Imports no objective until one is asked for."""

import contextlib
import dataclasses
import importlib
import importlib.metadata
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from card_scale.errors import ConfigurationError

if TYPE_CHECKING:
    from card_scale.objectives.base import Objective

BUILT_IN = MappingProxyType(
    {
        "card": "card_scale.objectives.card:CardObjective",
        "ar": "card_scale.objectives.ar:ArObjective",
        "mdlm": "card_scale.objectives.mdlm:MdlmObjective",
        "bd3lm": "card_scale.objectives.block_diffusion:BlockDiffusionObjective",
        "armd": "card_scale.objectives.armd:ArmdObjective",
    }
)
"""``module:class`` by name."""

DEFAULT = "card"
"""The objective of a configuration that names none."""

ENTRY_POINTS = "card_scale.objectives"
"""Group of entry points by which an installed package adds objectives: ``name = module:class``."""


def names() -> list[str]:
    """The names of all objectives, the built-in ones first. Raises ConfigurationError where two have one name."""
    added = _added()
    for name in BUILT_IN:
        _check_not_taken(name, added)
    return [*BUILT_IN, *sorted(added)]


def objective_class(name: str) -> "type[Objective]":
    """The class of the objective called ``name``.

    Raises ConfigurationError for an unknown or a broken one, or a name that an installed package gives to another.
    """
    added = _added()
    _check_not_taken(name, added)
    target = BUILT_IN.get(name) or added.get(name)
    if target is None:
        raise ConfigurationError(f"objective.name is {name!r}; valid are {', '.join(names())}")
    return _load(name, target)


def keys(kind: "type[Objective]") -> dict[str, dataclasses.Field]:
    """The configuration keys of an objective: its fields by name."""
    return {field.name: field for field in dataclasses.fields(kind) if field.metadata.get("key", True)}


def create(name: str, **values: Any) -> "Objective":
    """The objective called ``name`` with the given values of its fields.

    Raises ConfigurationError for an unknown name or key, or a value outside its range.
    """
    kind = objective_class(name)
    valid = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - valid)
    if unknown:
        known = ", ".join(keys(kind)) or "none"
        raise ConfigurationError(f"objective.{unknown[0]} is no key of objective.name {name}; its keys: {known}")
    return kind(**values)


def keys_of_others(name: str) -> "dict[str, dict[str, dataclasses.Field]]":
    """The configuration keys of every objective but the one called ``name``, by objective.

    Those of installed packages that cannot be used are left out: only who asks for them is to learn of it.
    """
    found = {other: keys(_load(other, target)) for other, target in BUILT_IN.items() if other != name}
    for other, target in _added().items():
        if other != name and other not in BUILT_IN:
            # Whatever a foreign module does when it is imported.
            with contextlib.suppress(Exception):
                found[other] = keys(_load(other, target))
    return found


def _load(name: str, target: str) -> "type[Objective]":
    module, _, attribute = target.partition(":")
    try:
        kind: type[Objective] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"objective.name {name}: {target} cannot be loaded: {error}") from error
    if kind.name != name:
        raise ConfigurationError(f"objective.name is {name!r}, but {target} calls itself {kind.name!r}")
    return kind


def _check_not_taken(name: str, added: Mapping[str, str]) -> None:
    if name in BUILT_IN and name in added:
        raise ConfigurationError(
            f"objective.name {name}: an installed package adds {added[name]} under the name of the built-in "
            f"{BUILT_IN[name]}; rename or remove its entry point of {ENTRY_POINTS}"
        )


def _added() -> dict[str, str]:
    """What installed packages add."""
    return {entry.name: entry.value for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)}
