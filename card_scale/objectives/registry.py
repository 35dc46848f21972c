"""The list of objectives, by the value of ``objective.name``. Imports no objective until one is asked for."""

import dataclasses
import importlib
import importlib.metadata
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
    }
)
"""``module:class`` by name."""

DEFAULT = "card"
"""The objective of a configuration that names none."""

ENTRY_POINTS = "card_scale.objectives"
"""Group of entry points by which an installed package adds objectives: ``name = module:class``."""


def names() -> list[str]:
    """The names of all objectives, the built-in ones first."""
    return [*BUILT_IN, *sorted(_added())]


def objective_class(name: str) -> "type[Objective]":
    """The class of the objective called ``name``. Raises ConfigurationError for an unknown or a broken one."""
    target = BUILT_IN.get(name) or _added().get(name)
    if target is None:
        raise ConfigurationError(f"objective.name is {name!r}; valid are {', '.join(names())}")
    module, _, attribute = target.partition(":")
    try:
        kind: type[Objective] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"objective.name {name}: {target} cannot be loaded: {error}") from error
    if kind.name != name:
        raise ConfigurationError(f"objective.name is {name!r}, but {target} calls itself {kind.name!r}")
    return kind


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


def _added() -> dict[str, str]:
    """What installed packages add."""
    found = importlib.metadata.entry_points(group=ENTRY_POINTS)
    return {entry.name: entry.value for entry in found if entry.name not in BUILT_IN}
