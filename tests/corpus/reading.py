"""Reading files as a build does, and writing them compressed."""

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import zstandard

from card_scale.corpus.source_documents import Document, documents
from card_scale.corpus.sources import InputSettings, scan, split_piece

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
"""By the ending of a file's name."""


def read_documents(*paths: Path, size: int | None = None, **settings) -> list[Document]:
    """The documents of inputs, the pieces divided to about ``size`` bytes."""
    inputs = InputSettings(tuple(map(str, paths)), **settings)
    pieces = scan(inputs).pieces
    divided = [part for piece in pieces for part in (split_piece(piece, size) if size else [piece])]
    return [document for piece in divided for document in documents(piece, inputs)]


def read_texts(*paths: Path, **settings) -> list[str | None]:
    """The texts of inputs, None for each that is left out."""
    found = read_documents(*paths, **settings)
    return [document.text.decode() if document.left_out is None else None for document in found]
