"""Writing webdataset tar shards: deterministic bytes, known offsets, low cost.

A shard is a POSIX (ustar) archive; document KEY is the members ``KEY.json`` and ``KEY.npy``, which webdataset reads as
one sample. Headers are written here and not through ``tarfile`` (webdataset's own writer sits on it): 60 us a document
there would be a third of what encoding one kilobyte of text costs, and importing webdataset imports torch in every
worker process. Tests compare the bytes with ``tarfile`` and read the shards with webdataset.
"""

import hashlib
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from card_scale.files import commit, naming, partial_path

BLOCK = 512
END_MARKER = bytes(2 * BLOCK)
NPY_HEADER_BYTES = 128
_RECORD = 20 * BLOCK  # tar pads an archive to whole records

# One row a document. ``offset`` is that of the first token's bytes in the shard, ``crc32`` that of the tokens' bytes,
# so that a reader can tell damage that a tar's own header checksums do not cover.
INDEX_DTYPE = np.dtype([("shard", "<u4"), ("crc32", "<u4"), ("offset", "<u8"), ("tokens", "<u8")])


@dataclass(frozen=True)
class ShardRecord:
    """A finished shard as the manifest lists it."""

    name: str
    bytes: int
    documents: int
    tokens: int
    sha256: str


def tar_header(name: str, size: int) -> bytes:
    """The 512-byte ustar header of a regular file: mode 0444, owner 0, time 0. ``name`` is ASCII, below 100 bytes."""
    header = struct.pack(
        "100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x",
        name.encode("ascii"),
        b"0000444\0",
        b"0000000\0",
        b"0000000\0",
        _tar_size(size),
        b"00000000000\0",
        b"        ",  # the checksum counts its own field as spaces
        b"0",
        b"",
        b"ustar\x0000",
        b"",
        b"",
        b"0000000\0",
        b"0000000\0",
        b"",
    )
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


def _tar_size(size: int) -> bytes:
    if size < 8**11:
        return b"%011o\0" % size
    return b"\x80" + size.to_bytes(11, "big")  # GNU's binary form, which tarfile reads, beyond 8 GiB


def npy_header(dtype: np.dtype, count: int) -> bytes:
    """The header of a one-dimensional ``.npy`` file, version 1.0: 128 bytes, as ``numpy.save`` writes it."""
    description = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': ({count},), }}".encode()
    return b"\x93NUMPY\x01\x00v\x00" + description.ljust(NPY_HEADER_BYTES - 11) + b"\n"


def padding(size: int) -> int:
    """Bytes that fill ``size`` up to whole tar blocks."""
    return -size % BLOCK


class ShardWriter:
    """Writes one shard under a partial name; :meth:`finish` makes it durable and gives it its name."""

    def __init__(self, path: Path):
        self._path = path
        self._file = partial_path(path).open("wb")
        self._hash = hashlib.sha256()
        self._rows: list[tuple[int, int, int]] = []
        self.bytes = 0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_exception: object) -> None:
        self._file.close()

    def add(self, key: str, description: bytes, tokens: np.ndarray) -> None:
        """Append a document: its JSON ``description`` and its tokens, a little-endian unsigned array [tokens]."""
        data = tokens.tobytes()
        header = npy_header(tokens.dtype, len(tokens))
        before = b"".join(
            (
                tar_header(key + ".json", len(description)),
                description,
                bytes(padding(len(description))),
                tar_header(key + ".npy", len(header) + len(data)),
                header,
            )
        )
        self._rows.append((zlib.crc32(data), self.bytes + len(before), len(tokens)))
        self._write(b"".join((before, data, bytes(padding(len(header) + len(data))))))

    def _write(self, data: bytes) -> None:
        with naming(self._path):
            self._file.write(data)
        self._hash.update(data)
        self.bytes += len(data)

    def finish(self) -> tuple[ShardRecord, np.ndarray]:
        """Close the archive and commit it.

        Returns:
            Its record, and its index rows (``INDEX_DTYPE`` [documents], shard number 0).
        """
        self._write(END_MARKER)
        self._write(bytes(-self.bytes % _RECORD))
        with naming(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        commit(self._path)
        index = np.zeros(len(self._rows), dtype=INDEX_DTYPE)
        if self._rows:
            index["crc32"], index["offset"], index["tokens"] = np.array(self._rows, dtype=np.uint64).T
        record = ShardRecord(
            self._path.name, self.bytes, len(index), int(index["tokens"].sum()), self._hash.hexdigest()
        )
        return record, index
