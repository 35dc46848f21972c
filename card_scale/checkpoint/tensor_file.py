"""Writing a safetensors file tensor by tensor, hashed on the way: the library wants all of them in memory at once."""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from card_scale import files
from card_scale.checkpoint.format import StoredFile

_ALIGNMENT = 8
_FLOAT32_BYTES = 4


class TensorFileWriter:
    """A file of float32 tensors, under a partial name (files.commit gives it its own). A context manager."""

    def __init__(self, path: Path, shapes: Mapping[str, Sequence[int]]):
        """Begin the file; the tensors follow in the order of ``shapes``."""
        self.path = path
        self._awaited: Iterator[tuple[str, Sequence[int]]] = iter(shapes.items())
        self._hash = hashlib.sha256()
        self._hashing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint-hash")
        self._bytes = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = files.partial_path(path).open("wb", buffering=0)
        try:
            self._append(_header(shapes))
        except OSError:
            self.__exit__()
            raise

    def __enter__(self) -> "TensorFileWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._hashing.shutdown()
        with contextlib.suppress(OSError):  # of a file that is not finished anyway
            self._file.close()

    def add(self, name: str, tensor: Tensor) -> None:
        """Append the next tensor: float32, on CPU. ValueError for one that is not the next."""
        awaited, shape = next(self._awaited)
        if name != awaited or list(tensor.shape) != list(shape) or tensor.dtype != torch.float32:
            raise ValueError(f"{name} {tensor.dtype} {list(tensor.shape)} comes, awaited is {awaited} {list(shape)}")
        self._append(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)

    def finish(self) -> StoredFile:
        """Force the file to disk, still under its partial name; return its size and hash."""
        os.fsync(self._file.fileno())
        self._file.close()
        return StoredFile(self._bytes, self._hash.hexdigest())

    def _append(self, data: bytes | memoryview) -> None:
        # Neither holds the interpreter: hashing costs nothing beside writing.
        hashed = self._hashing.submit(self._hash.update, data)
        self._bytes += len(data)
        try:
            files.write_whole(self._file, data)
        finally:
            hashed.result()


def _header(shapes: Mapping[str, Sequence[int]]) -> bytes:
    """Return what stands before the tensors: the length of a JSON object, and the object."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + _FLOAT32_BYTES * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
