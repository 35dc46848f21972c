"""Plain autoregressive training: the baseline, and CARD without corruption."""

from dataclasses import dataclass
from typing import ClassVar

from card_scale.data.samples import Samples
from card_scale.objectives.attention import AttentionKind, Causal
from card_scale.objectives.base import Objective
from card_scale.objectives.batch import Batch, clean_next_token_batch


@dataclass(frozen=True)
class ArObjective(Objective):
    """Mean cross-entropy of each token given the clean tokens before it; an exact likelihood."""

    name: ClassVar[str] = "ar"
    attention: ClassVar[AttentionKind] = Causal()
    likelihood_is_exact: ClassVar[bool] = True
    decoders: ClassVar[tuple[str, ...]] = ("ar", "self_verified")

    def corrupt(self, samples: Samples, seed: int) -> Batch:  # noqa: ARG002 - nothing is drawn
        """The clean batch: nothing is corrupted."""
        return clean_next_token_batch(samples)

    def likelihood(self, samples: Samples, seed: int) -> Batch:  # noqa: ARG002 - nothing is drawn
        """The clean batch, every weight 1."""
        return clean_next_token_batch(samples)

    def scored(self, length: int) -> int:
        """Every input predicts the token after it."""
        return length
