"""Encoding documents in memory that does not grow with the longest of them.

Sentencepiece takes 40 to 50 bytes of memory for a byte of text that it encodes in one go. A long document is therefore
cut where no piece of the vocabulary reaches across, that is between two characters that stand side by side in no piece.
BPE only ever joins neighbours to a piece, so nothing would have joined across the cut, and the ids are the same. A
unigram model's best segmentation is the same too, but for near ties: it adds up a document's scores in float32, and
decides them differently the more it has added. A tokenizer of which nothing of the kind is known encodes every document
in one go.
"""

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np

from card_scale.data.tokenizer import Tokenizer

LONGEST_WHOLE = 1 << 22
"""Bytes of the longest document that is encoded in one go."""

_CHUNK = 1 << 14  # a shorter queue of merges: half the time of chunks of 1 MiB
_LOOK_AHEAD = 1 << 12


class DocumentEncoder:
    """A tokenizer for documents of any length."""

    def __init__(self, tokenizer: Tokenizer, longest_whole: int = LONGEST_WHOLE, chunk: int = _CHUNK):
        self._tokenizer = tokenizer
        self._longest_whole, self._chunk = longest_whole, chunk

    def encode(self, texts: list[bytes], report: Callable[[int], None]) -> Iterator[np.ndarray]:
        """Yield the token ids of each text, int32 [tokens], without BOS or EOS.

        Args:
            texts: UTF-8.
            report: called with the bytes of text encoded since the last call, between the chunks of long documents too.
        """
        if max(map(len, texts), default=0) <= self._longest_whole or not self._tokenizer.can_be_cut:
            yield from self._tokenizer.encode_batch(texts)
            report(sum(map(len, texts)))
            return
        for text in texts:
            encoded = [np.zeros(0, dtype=np.int32)]
            for chunk in self._chunks(text) if len(text) > self._longest_whole else [text]:
                encoded += self._tokenizer.encode_batch([chunk])
                report(len(chunk))
            yield np.concatenate(encoded)

    def _chunks(self, text: bytes) -> Iterator[bytes]:
        begin = 0
        while begin < len(text):
            end = self._cut(text, begin + self._chunk)
            yield text[begin:end]
            begin = end

    def _cut(self, text: bytes, earliest: int) -> int:
        """The first place at or behind a byte where no piece can reach across; the end where there is none."""
        while earliest < len(text) and text[earliest] & 0xC0 == 0x80:  # inside a character
            earliest += 1
        while earliest < len(text):
            window = text[earliest : earliest + _LOOK_AHEAD].decode(errors="ignore")  # but for one cut at the end
            for place in range(1, len(window)):
                if _pair(window[place - 1 : place + 1]) not in self._joined:
                    return earliest + len(window[:place].encode())
            earliest += len(window[:-1].encode()) or len(window.encode())
        return len(text)

    @cached_property
    def _joined(self) -> frozenset[str]:
        """The pairs of characters that stand side by side in a piece."""
        pieces = [self._tokenizer.piece(token) for token in range(self._tokenizer.vocabulary_size)]
        return frozenset(_pair(piece[place : place + 2]) for piece in pieces for place in range(len(piece) - 1))


def _pair(characters: str) -> str:
    """A pair as sentencepiece sees it, for which a space and U+2581 are the same."""
    return characters.replace("\u2581", " ")
