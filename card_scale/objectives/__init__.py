"""Training objectives: what is corrupted, what is predicted and with which weight."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from card_scale.errors import ConfigurationError
from card_scale.objectives.ar import ArObjective
from card_scale.objectives.base import Objective, ObjectiveBatch, weighted_loss
from card_scale.objectives.card import CardObjective

OBJECTIVES: Mapping[str, type[Objective]] = MappingProxyType({kind.name: kind for kind in (CardObjective, ArObjective)})
"""Objectives by the value of ``objective.name``."""


def create_objective(name: str, **parameters: object) -> Objective:
    """The objective called ``name`` with ``parameters`` (keys of the configuration group ``objective``, and mask_id).

    Raises ConfigurationError for an unknown name, a parameter that the objective does not have, or a bad value.
    """
    if name not in OBJECTIVES:
        raise ConfigurationError(f"objective.name is {name!r}; valid are {', '.join(OBJECTIVES)}")
    kind = OBJECTIVES[name]
    valid = [field.name for field in dataclasses.fields(kind)]
    for key in parameters:
        if key not in valid:
            raise ConfigurationError(
                f"objective.{key} does not belong to objective.name {name}; valid are {', '.join(valid) or 'none'}"
            )
    return kind(**parameters)


__all__ = [
    "OBJECTIVES",
    "ArObjective",
    "CardObjective",
    "Objective",
    "ObjectiveBatch",
    "create_objective",
    "weighted_loss",
]
