"""Where a sequence ends before its full length."""

from card_scale.errors import ConfigurationError
from card_scale.generation.model import InferenceModel


class Stopping:
    """Stop tokens and strings. Raises ConfigurationError for strings without a tokenizer, and for an empty one."""

    def __init__(self, tokens: tuple[int, ...], strings: tuple[str, ...], model: InferenceModel):
        if isinstance(strings, str):
            raise ConfigurationError(f"stop_strings is the text {strings!r}; valid is a tuple of texts")
        self.tokens, self.strings, self.tokenizer = frozenset(tokens), tuple(strings), model.tokenizer
        if self.strings and self.tokenizer is None:
            raise ConfigurationError("stop_strings need a model with a tokenizer")
        if "" in self.strings:
            raise ConfigurationError("an empty stop string would stop every text at once")

    def end(self, new: list[int], known: int) -> tuple[int, str | None]:
        """Return (how many of the new tokens remain, what ended them or None).

        The first ``known`` are known to hold no stop. A stop token stays as the last; so does the token that completes
        a stop string.
        """
        for place in range(known, len(new)):
            if new[place] in self.tokens:
                return place + 1, str(new[place])
            if self.strings:
                text = self.tokenizer.continuation(new[: place + 1])
                for string in self.strings:
                    if string in text:
                        return place + 1, string
        return len(new), None


def text_before_stop(text: str, strings: tuple[str, ...]) -> str:
    """The text up to the first of the stop strings in it."""
    ends = [text.index(string) for string in strings if string in text]
    return text[: min(ends)] if ends else text
