"""How much an evaluation asks of the model. Imports nothing heavy."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from card_scale.objectives.base import Objective

DRAWS = 4
"""Draws of the noise over the validation set that estimate a bound; two at least, for its standard error."""


def likelihood_passes(objective: "Objective") -> int:
    """Return the forward passes over each sample that its likelihood takes."""
    return 1 if objective.likelihood_is_exact else DRAWS
