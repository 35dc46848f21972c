"""What the model must know of a tokenizer. Imports nothing heavy."""

from dataclasses import dataclass

from card_scale.errors import ConfigurationError

VOCABULARY_MULTIPLE = 64
"""The vocabulary is padded to a multiple of this, whatever the layout, so that any layout loads any checkpoint."""


def padded_vocabulary(vocabulary: int) -> int:
    """Return the number of rows of the embedding for a tokenizer of ``vocabulary`` pieces."""
    return -(-vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


@dataclass(frozen=True)
class Vocabulary:
    """Sizes and ids of the tokenizer that the model must know."""

    size: int
    mask_id: int

    @property
    def padded(self) -> int:
        """Rows of the embedding and of the output head."""
        return padded_vocabulary(self.size)

    def check_divisible(self, tensor: int) -> None:
        """Raise ConfigurationError where ``tensor`` ranks cannot hold equal shards of the rows."""
        if self.padded % tensor:
            divisors = ", ".join(str(size) for size in range(1, tensor + 1) if self.padded % size == 0)
            raise ConfigurationError(
                f"the padded vocabulary {self.padded} is not divisible by parallel.tensor {tensor}; valid up to it: "
                f"{divisors}"
            )
