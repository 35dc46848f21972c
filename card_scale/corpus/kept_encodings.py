"""What has been encoded of a unit that is not finished yet, on disk, so that a restart only has to read it again.

A compressed file cannot be entered in the middle, so it is one unit however large, and encoding it takes many times as
long as decompressing it. Every entry says by a hash which texts and which tokenizer it is of: it can be used by a build
with other settings too, and never for another text.
"""

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from card_scale.corpus.encoding import DocumentEncoder

_KEY_BYTES = 16
_HEAD = struct.Struct(f"<{_KEY_BYTES}sI")  # which texts, and the checksum of what follows: lengths and ids


class KeptEncoder:
    """A document encoder that first looks whether an earlier attempt has encoded the same batches."""

    def __init__(self, encoder: DocumentEncoder, identity: str, file: BinaryIO):
        """Use an encoder whose tokenizer has an ``identity``, and a file that is open for reading and writing."""
        self._encoder, self._identity, self._file = encoder, identity.encode(), file
        self._may_hold_more = True

    def encode(self, texts: list[bytes], report: Callable[[int], None]) -> Iterator[np.ndarray]:
        """Yield the token ids of each text, int32 [tokens], as ``DocumentEncoder.encode`` does."""
        encoded = self._take(texts)
        if encoded is None:
            encoded = list(self._encoder.encode(texts, report))
            self._add(texts, encoded)
        else:
            report(sum(map(len, texts)))
        yield from encoded

    def _key(self, texts: list[bytes]) -> bytes:
        digest = hashlib.blake2b(self._identity, digest_size=_KEY_BYTES)
        for text in texts:
            digest.update(len(text).to_bytes(8, "little"))
            digest.update(text)
        return digest.digest()

    def _take(self, texts: list[bytes]) -> list[np.ndarray] | None:
        """The next entry if it is of these texts; else the rest of the file, which another attempt wrote, goes."""
        if not self._may_hold_more:
            return None
        begin = self._file.tell()
        head = self._file.read(_HEAD.size)
        if head[:_KEY_BYTES] == self._key(texts) and len(head) == _HEAD.size:
            lengths = self._file.read(4 * len(texts))
            whole = len(lengths) == 4 * len(texts)
            ids = self._file.read(4 * int(np.frombuffer(lengths, "<u4").sum())) if whole else b""
            if zlib.crc32(ids, zlib.crc32(lengths)) == _HEAD.unpack(head)[1]:
                ends = np.cumsum(np.frombuffer(lengths, "<u4"))
                return np.split(np.frombuffer(ids, "<i4"), ends)[:-1]
        self._may_hold_more = False
        self._file.seek(begin)
        self._file.truncate()
        return None

    def _add(self, texts: list[bytes], encoded: list[np.ndarray]) -> None:
        lengths = np.array([len(ids) for ids in encoded], dtype="<u4").tobytes()
        ids = np.concatenate([np.zeros(0, dtype="<i4"), *encoded]).astype("<i4").tobytes()
        head = _HEAD.pack(self._key(texts), zlib.crc32(ids, zlib.crc32(lengths)))
        self._file.write(head + lengths + ids)
        self._file.flush()


def open_kept(path: Path) -> BinaryIO:
    """Open the file of a unit, made where there is none, at its beginning."""
    path.touch()
    return path.open("r+b")
