"""What the model must know of a tokenizer. Imports nothing heavy."""

from dataclasses import dataclass

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
