"""Equality of whole documents but for case and white space, told from their tokens.

The normal form of a text is its UTF-8 bytes, ASCII letters in lower case, ASCII white space left out. It is defined
byte by byte, so a document's is that of its tokens one after the other, however the text was cut into tokens.
"""

import hashlib

import numpy as np

from card_scale.corpus.ngrams import mix
from card_scale.data.documents import Documents
from card_scale.data.tokenizer import Tokenizer

_WHITE_SPACE = b" \t\n\r\v\f"
_LOWER = bytes(range(256)).lower()


def normalized(text: bytes) -> bytes:
    """The normal form of a text."""
    return text.translate(_LOWER, _WHITE_SPACE)


class NormalizedText:
    """Fingerprints and digests of documents' normal forms.

    A fingerprint is a sum over the bytes of the normal form, which numpy makes of all documents at once; it does not
    see their order. A digest does, at several times the cost, and is only needed where fingerprints are equal.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._pieces = [normalized(tokenizer.piece_bytes(token)) for token in range(tokenizer.vocabulary_size)]
        of_bytes = mix(np.arange(256, dtype=np.uint64))
        self._sums = np.array(
            [of_bytes[list(piece)].sum(dtype=np.uint64) for piece in self._pieces], dtype=np.uint64
        )  # wraps around modulo 2**64, as any sum of them may

    def fingerprints(self, documents: Documents) -> np.ndarray:
        """uint64 [D], equal for documents of equal normal form."""
        sums = np.cumsum(self._sums[documents.tokens], dtype=np.uint64)
        upto = np.concatenate([np.zeros(1, dtype=np.uint64), sums])[documents.ends]
        return mix(np.diff(upto, prepend=np.uint64(0)))

    def digest(self, tokens: np.ndarray) -> int:
        """64 bits of the BLAKE2b hash of one document's normal form; ``tokens`` unsigned [T], without EOS."""
        content = b"".join(map(self._pieces.__getitem__, tokens.tolist()))
        return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
