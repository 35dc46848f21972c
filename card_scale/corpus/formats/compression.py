"""Reading a file through its compression, in blocks, with an error for whatever is damaged or cut short."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from card_scale.corpus.formats.names import COMPRESSIONS, kind_of
from card_scale.corpus.optional_library import optional_library
from card_scale.errors import DataError

BLOCK = 1 << 20
"""Bytes of a read."""

_COMPRESSED_BLOCK = 1 << 17  # zstd expands a block whole, and may do so by a factor of thousands


@contextmanager
def open_decompressed(path: str) -> Iterator[tuple[io.BufferedReader, Callable[[], int]]]:
    """Open a file, compressed or not, as its name says.

    Yields:
        The content, and a function that gives the bytes of the file, as it stands on disk, that have been read.

    Raises:
        DataError: damaged or truncated content, met while reading inside; a library that is missing.
        OSError: a file that cannot be read.
    """
    compression = kind_of(path).compression
    with open(path, "rb", buffering=0) as file:
        try:
            yield io.BufferedReader(_decompressed(file, compression, path), BLOCK), file.tell
        except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
            raise _damaged(path, compression, error) from error
        except OSError as error:
            if compression != ".bz2" or error.errno is not None:  # bzip2 reports damage so, without a number
                raise
            raise _damaged(path, compression, error) from error


def _damaged(path: str, compression: str, error: Exception) -> DataError:
    return DataError(f"{path}: damaged or truncated {COMPRESSIONS[compression]} file ({error})")


def _decompressed(file: io.FileIO, compression: str, path: str) -> io.RawIOBase:
    # What gzip, bz2 and lzma open are buffered streams by name, and give all that a raw one must.
    if compression == ".gz":
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    if compression == ".bz2":
        return bz2.BZ2File(file)  # type: ignore[return-value]
    if compression == ".xz":
        return lzma.LZMAFile(file)  # type: ignore[return-value]
    if compression == ".zst":
        return _Blocks(_zstandard_blocks(file, path))
    return file


class _Blocks(io.RawIOBase):
    """Blocks of bytes as a stream."""

    def __init__(self, blocks: Iterator[bytes]):
        self._blocks = blocks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, target: memoryview) -> int:  # type: ignore[override]
        # Filled over the ends of blocks, which may be as short as one byte: a look at the first bytes of a file, which
        # tells what it holds, is one read.
        filled = 0
        while filled < len(target):
            if not self._rest:
                block = next(self._blocks, None)
                if block is None:
                    break
                self._rest = memoryview(block)
            size = min(len(target) - filled, len(self._rest))
            target[filled : filled + size] = self._rest[:size]
            self._rest = self._rest[size:]
            filled += size
        return filled


def _zstandard_blocks(file: io.FileIO, path: str) -> Iterator[bytes]:
    zstandard = optional_library("zstandard", path)
    # Decompressed frame by frame: the library's stream reader takes a truncated frame for the end of the file.
    decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)  # as written by zstd --long=31
    frame = decompressor.decompressobj()
    inside = False
    while block := file.read(_COMPRESSED_BLOCK):
        while block:
            try:
                yield frame.decompress(block)
            except zstandard.ZstdError as error:
                raise _damaged(path, ".zst", error) from error
            inside = not frame.eof
            block = frame.unused_data
            if frame.eof:
                frame = decompressor.decompressobj()
    if inside:
        raise DataError(f"{path}: damaged or truncated zstd file (it ends inside a frame)")
