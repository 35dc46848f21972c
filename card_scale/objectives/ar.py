"""Plain autoregressive training: the baseline, and CARD without corruption."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from card_scale.objectives.base import Objective, ObjectiveBatch, clean_next_token_batch


@dataclass(frozen=True)
class ArObjective(Objective):
    """Mean cross-entropy of each token given the clean tokens before it; an exact likelihood."""

    name: ClassVar[str] = "ar"
    attention: ClassVar[str] = "causal"

    def corrupt(
        self,
        tokens: torch.Tensor,
        sample_ids: torch.Tensor,  # noqa: ARG002 - nothing is drawn, the interface is shared
        epochs: torch.Tensor,  # noqa: ARG002
        seed: int,  # noqa: ARG002
    ) -> ObjectiveBatch:
        """The clean batch: nothing is corrupted."""
        return clean_next_token_batch(tokens)

    def clean(self, tokens: torch.Tensor) -> ObjectiveBatch:
        """Inputs, targets and unit weights of ``tokens`` int64 [B, L + 1]."""
        return clean_next_token_batch(tokens)
