"""How far the training of a tokenizer is: the library itself is silent."""

import time


class TrainingProgress:
    """Counts what is read and taken; ``input_bytes`` is the size of the files, compressed as they may be."""

    def __init__(self, input_bytes: int):
        self._input_bytes = input_bytes
        self._read = self._characters = self._sentences = 0
        self._training_since: float | None = None

    def read(self, size: int) -> None:
        """Count a document of so many bytes."""
        self._read += size

    def take(self, characters: int) -> None:
        """Count a sentence to train on."""
        self._characters += characters
        self._sentences += 1

    def begin_training(self) -> None:
        """Note that all is read."""
        self._training_since = time.monotonic()

    def line(self) -> str:
        """What is being done, in a line."""
        taken = f"{self._characters:,} characters in {self._sentences:,} parts"
        if self._training_since is None:
            size = f"{self._read / 1e6:,.0f} MB of text read, of files of {self._input_bytes / 1e6:,.0f} MB"
            return f"tokenizer: {size}; {taken} are taken"
        return f"tokenizer: training on {taken} for {time.monotonic() - self._training_since:.0f} s"
