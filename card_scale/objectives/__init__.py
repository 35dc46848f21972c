"""Training objectives: what is corrupted, what is predicted and with which weight."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from card_scale.errors import ConfigurationError
from card_scale.objectives.ar import ArObjective
from card_scale.objectives.base import AttentionKind, Objective, ObjectiveBatch, Samples, weighted_loss
from card_scale.objectives.block_diffusion import BlockDiffusionObjective
from card_scale.objectives.card import CardObjective
from card_scale.objectives.mdlm import MdlmObjective

OBJECTIVES: Mapping[str, type[Objective]] = MappingProxyType(
    {kind.name: kind for kind in (CardObjective, ArObjective, MdlmObjective, BlockDiffusionObjective)}
)
"""Objectives by the value of ``objective.name``."""


def create_objective(name: str, **parameters: object) -> Objective:
    """The objective called ``name``, from ``parameters``: the configuration group ``objective``, and ``mask_id``.

    The group holds the keys of all objectives; those of another one are not looked at. Raises ConfigurationError for an
    unknown name, a key that no objective has, or a bad value.
    """
    if name not in OBJECTIVES:
        raise ConfigurationError(f"objective.name is {name!r}; valid are {', '.join(OBJECTIVES)}")
    own = _keys(OBJECTIVES[name])
    known = sorted(set().union(*map(_keys, OBJECTIVES.values())))
    for key in parameters:
        if key not in known:
            raise ConfigurationError(f"objective.{key} is unknown; valid are {', '.join(known)}")
    return OBJECTIVES[name](**{key: value for key, value in parameters.items() if key in own})


def _keys(kind: type[Objective]) -> set[str]:
    """Names of the parameters that an objective takes."""
    assert dataclasses.is_dataclass(kind)
    return {field.name for field in dataclasses.fields(kind)}


__all__ = [
    "OBJECTIVES",
    "ArObjective",
    "AttentionKind",
    "BlockDiffusionObjective",
    "CardObjective",
    "MdlmObjective",
    "Objective",
    "ObjectiveBatch",
    "Samples",
    "create_objective",
    "weighted_loss",
]
