"""The format of a checkpoint: the names of its files and entries, and the manifest that says where each tensor lies.

Nothing in it depends on the layout that will read it. The manifest is written last: a directory with one is complete.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from card_scale.engine.state_keys import WEIGHT
from card_scale.errors import CheckpointError
from card_scale.files import sha256_file

FORMAT = 1
_DIGEST = "sha256"
"""Entry of a manifest that holds the hash of all others; those of the first versions have none."""
MANIFEST_NAME = "manifest.json"
STATE_NAME = "state.json"
CONFIG_NAME = "config.yaml"
TOKENIZER_STEM = "tokenizer"
"""Of the tokenizer's file, whose ending says of what kind it is."""


def folder_of(key: str) -> str:
    """Return the folder of a state key: weights apart from optimizer states."""
    return "model" if key == WEIGHT else "optimizer"


def tensor_file(folder: str, stem: str) -> str:
    """Return the path, inside the checkpoint, of the tensors that one rank wrote into a folder."""
    return f"{folder}/{stem}.safetensors"


def entry_name(key: str, name: str, start: int, stop: int) -> str:
    """Return the name of one piece of one state inside its safetensors file."""
    return f"{key}/{name}[{start}:{stop}]"


@dataclass(frozen=True)
class StoredPiece:
    """Indices [start, stop) of a tensor along its split dimension; ``file`` is the stem (``tp00-pp00-dp0000``)."""

    file: str
    start: int
    stop: int


@dataclass
class StoredTensor:
    """A parameter in whole-model coordinates; every state key of it is stored in the same pieces."""

    shape: list[int]
    dimension: int
    pieces: list[StoredPiece] = field(default_factory=list)

    def covered(self) -> bool:
        """Return whether the pieces tile the split dimension without gap or overlap."""
        position = 0
        for piece in sorted(self.pieces, key=lambda piece: piece.start):
            if piece.start != position:
                return False
            position = piece.stop
        return position == self.shape[self.dimension]


@dataclass
class StoredFile:
    bytes: int
    sha256: str

    @classmethod
    def synced(cls, path: Path) -> "StoredFile":
        """Force a file to disk and return its size and hash."""
        with path.open("rb") as file:
            os.fsync(file.fileno())
        return cls(path.stat().st_size, sha256_file(path))


@dataclass
class CheckpointManifest:
    step: int
    state_keys: list[str]
    layout: str
    engine: str
    tokenizer_sha256: str
    data_digest: str
    versions: dict[str, str]
    tensors: dict[str, StoredTensor]
    files: dict[str, StoredFile]
    format: int = FORMAT

    def to_json(self) -> str:
        content = asdict(self)
        return json.dumps(content | {_DIGEST: _digest(content)}, indent=1)

    def check_complete(self, directory: Path) -> None:
        """Raise CheckpointError for a file that is missing or has another size, or a tensor with a gap."""
        for name, stored in self.files.items():
            path = directory / name
            if not path.is_file():
                raise CheckpointError(f"checkpoint {directory}: file {name} is missing")
            try:
                found = path.stat().st_size
            except OSError as error:
                raise CheckpointError(f"checkpoint {directory}: file {name} cannot be looked at: {error}") from None
            if found != stored.bytes:
                raise CheckpointError(
                    f"checkpoint {directory}: file {name} has {found} bytes, the manifest says {stored.bytes}"
                )
        for name, tensor in self.tensors.items():
            if not tensor.covered():
                raise CheckpointError(f"checkpoint {directory}: tensor {name} is not stored completely")


def _digest(content: dict[str, Any]) -> str:
    """SHA-256 of a manifest's entries, however they are laid out."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(directory: Path) -> CheckpointManifest:
    """Return a checkpoint's manifest after checking that the checkpoint is complete; CheckpointError otherwise."""
    path = directory / MANIFEST_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"checkpoint {directory}: {MANIFEST_NAME} is missing, so it was never completed"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"checkpoint {directory}: {MANIFEST_NAME} is damaged: {error}") from None
    except OSError as error:
        raise CheckpointError(f"checkpoint {directory}: {MANIFEST_NAME} cannot be read: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else content
        raise CheckpointError(
            f"checkpoint {directory}: {MANIFEST_NAME}: format is {found!r}, this version reads {FORMAT}"
        )
    if _DIGEST in content and content.pop(_DIGEST) != _digest(content):
        raise CheckpointError(f"checkpoint {directory}: {MANIFEST_NAME} is damaged: it is not what was written")
    try:
        tensors = {
            name: StoredTensor(t["shape"], t["dimension"], [StoredPiece(**piece) for piece in t["pieces"]])
            for name, t in content.pop("tensors").items()
        }
        files = {name: StoredFile(**stored) for name, stored in content.pop("files").items()}
        manifest = CheckpointManifest(tensors=tensors, files=files, **content)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {directory}: {MANIFEST_NAME} lacks or misnames a field: {error}") from None
    manifest.check_complete(directory)
    return manifest
