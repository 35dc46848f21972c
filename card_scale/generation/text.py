"""Text in and out: prompts to tokens, tokens to text as they come, and a view of which pass decided what."""

import codecs
from collections.abc import Iterable
from typing import TextIO

from card_scale.data.tokenizer import EOS_ID, Tokenizer

COLOURS = (36, 33, 32, 35, 34, 31)
"""ANSI foreground colours of consecutive passes."""


def prompt_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a prompt that begins a document."""
    return [EOS_ID, *tokenizer.encode(text)]


class TextStream:
    """Writes tokens as text while they come; a character of several tokens when its last one is there.

    Args:
        tokenizer: of the tokens.
        file: to write to.
        coloured: give the tokens of each pass a colour, another one than the pass before.
    """

    def __init__(self, tokenizer: Tokenizer, file: TextIO, *, coloured: bool = False):
        self.tokenizer, self.file, self.coloured = tokenizer, file, coloured
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def write(self, tokens: Iterable[int], passes: Iterable[int]) -> None:
        """Write tokens, each with the pass in which it was decided."""
        for token, number in zip(tokens, passes, strict=True):
            text = self._decoder.decode(self.tokenizer.piece_bytes(token))
            self.file.write(f"\x1b[{COLOURS[number % len(COLOURS)]}m{text}\x1b[0m" if self.coloured and text else text)
        self.file.flush()

    def close(self) -> None:
        """Write what a cut-off character leaves."""
        self.file.write(self._decoder.decode(b"", final=True))
        self.file.flush()
