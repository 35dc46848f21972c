"""Text in and out: prompts to tokens, tokens to text as they come, and a view of which pass decided what."""

import codecs
import itertools
from collections.abc import Iterable
from typing import TextIO

from card_scale.data.tokenizer import Tokenizer
from card_scale.errors import DataError

COLOURS = (36, 33, 32, 35, 34, 31)
"""ANSI foreground colours of consecutive passes."""


def prompt_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a prompt that begins a document. Raises DataError for half characters, as a bad terminal sends."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"the prompt is no valid text at character {error.start}") from None
    return [tokenizer.eos_id, *tokenizer.encode(text)]


class TextStream:
    """Writes tokens as text while they come; a character of several tokens when its last one is there.

    Args:
        tokenizer: of the tokens.
        file: to write to.
        opening: text to write before the first token.
        coloured: give the tokens of each pass a colour, another one than the pass before.
        stops: texts that end the output, and are not part of it: what may become one is held back.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        file: TextIO,
        opening: str = "",
        *,
        coloured: bool = False,
        stops: tuple[str, ...] = (),
    ):
        self.tokenizer, self.file, self.opening, self.coloured, self.stops = tokenizer, file, opening, coloured, stops
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held: list[tuple[str, int]] = []
        """Characters that are not written yet, each with its pass."""

    def write(self, tokens: Iterable[int], passes: Iterable[int]) -> None:
        """Write tokens, each with the pass in which it was decided."""
        for token, number in zip(tokens, passes, strict=True):
            text = self._decoder.decode(self.tokenizer.piece_bytes(token))
            self._held += [(character, number) for character in text]
        self._release(max(map(len, self.stops), default=1) - 1)

    def close(self) -> None:
        """Write what was held back, up to a stop, and what a cut-off character leaves."""
        self._held += [(character, 0) for character in self._decoder.decode(b"", final=True)]
        held = "".join(character for character, _ in self._held)
        end = min((held.index(stop) for stop in self.stops if stop in held), default=len(held))
        del self._held[end:]
        self._release(0)

    def _release(self, keep: int) -> None:
        """Write all held characters but the last ``keep``, and none from a stop on."""
        held = "".join(character for character, _ in self._held)
        stop = min((held.index(text) for text in self.stops if text in held), default=len(held))
        count = max(0, min(len(held) - keep, stop))
        self.file.write(self.opening)
        self.opening = ""
        for number, run in itertools.groupby(self._held[:count], key=lambda pair: pair[1]):
            text = "".join(character for character, _ in run)
            self.file.write(f"\x1b[{COLOURS[number % len(COLOURS)]}m{text}\x1b[0m" if self.coloured else text)
        del self._held[:count]
        self.file.flush()
