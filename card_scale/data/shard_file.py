"""Reading the documents of a shard by their place, through errors of the disk that pass.

Not by a memory mapping: there an error of the disk, or a file that was cut, ends the process (SIGBUS) instead of being
an error.
"""

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from card_scale import faults
from card_scale.data.shards import ShardRecord
from card_scale.errors import DataError

DELAYS = (0.5, 2.0, 8.0)
"""Seconds before each further attempt: a storage server that changes over is away for some seconds."""

PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.ECONNRESET, errno.EREMOTEIO)
"""Errors that may be gone at the next attempt."""


class ShardFile:
    """One shard, opened when it is first read and again after an error."""

    def __init__(self, directory: Path, shard: ShardRecord, *, sleep: Callable[[float], None] = time.sleep):
        self.path, self.bytes = directory / shard.name, shard.bytes
        self._sleep = sleep
        self._descriptor: int | None = None
        self._given_up = False
        """Whether all attempts have failed: until one succeeds there is one at a time."""
        # Batches are read in a thread of their own, while evaluations read here too.
        self._lock = threading.Lock()

    def __del__(self) -> None:
        self._close()

    def document(self, row: np.ndarray, itemsize: int) -> np.ndarray:
        """Return the bytes of a document's tokens, EOS included: uint8 [tokens * itemsize], not checked.

        ``row`` is that of the index. Raises DataError for a shard that is missing, has another size than the manifest
        says, or cannot be read after all attempts.
        """
        offset, size = int(row["offset"]), int(row["tokens"]) * itemsize
        with self._lock:
            return self._attempt(offset, size)

    def _attempt(self, offset: int, size: int) -> np.ndarray:
        for delay in (None,) if self._given_up else (*DELAYS, None):
            try:
                faults.reach("data.read")
                found = self._read(offset, size)
            except OSError as error:
                self._close()
                if error.errno not in PASSING or delay is None:
                    self._given_up = True
                    raise DataError(f"{self.path}: cannot be read at byte {offset} ({error})") from error
            except DataError:
                self._close()
                raise
            else:
                self._given_up = False
                return found
            self._sleep(delay)
        raise AssertionError("the last attempt returns or raises")

    def _read(self, offset: int, size: int) -> np.ndarray:
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            found = os.fstat(self._descriptor).st_size
            if found != self.bytes:
                raise DataError(f"{self.path}: {found} bytes, expected {self.bytes}; it changed while it was in use")
        parts, got = [], 0
        while got < size:  # one call reads at most 2 GiB
            part = os.pread(self._descriptor, size - got, offset + got)
            if not part:
                raise DataError(f"{self.path}: ends at byte {offset + got}; it changed while it was in use")
            parts.append(part)
            got += len(part)
        return np.frombuffer(parts[0] if len(parts) == 1 else b"".join(parts), dtype=np.uint8)

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
