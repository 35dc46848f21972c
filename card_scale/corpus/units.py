"""Units of work of a build: a unit's shards are a pure function of the inputs, so any process may make them.

A unit is finished when its record exists and agrees with its files; records are written last and atomically. Whatever
an interrupted unit left behind is overwritten by the next attempt, which writes the same bytes.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from card_scale.corpus import sources
from card_scale.corpus.encoding import DocumentEncoder
from card_scale.corpus.formats.names import kind_of
from card_scale.corpus.kept_encodings import KeptEncoder, open_kept
from card_scale.corpus.source_documents import INVALID, NULL, Document, documents
from card_scale.corpus.sources import InputSettings, Piece
from card_scale.data.manifest import SPLITS, token_dtype
from card_scale.data.shards import INDEX_DTYPE, ShardRecord, ShardWriter
from card_scale.data.tokenizer import Tokenizer
from card_scale.files import replace, sha256_file

BUILD_DIRECTORY = "build"  # inside the dataset directory while it is unfinished
_MOST_PIECES = 4096
_BATCH_BYTES = 1 << 20
_BATCH_DOCUMENTS = 1024
_KEPT_BYTES = 1 << 22  # of input that take a second or so to encode


@dataclass(frozen=True)
class Unit:
    """Pieces that one process turns into shards of their own."""

    number: int
    pieces: tuple[Piece, ...]

    @property
    def bytes(self) -> int:
        """Size of the input, for progress."""
        return sum(piece.bytes for piece in self.pieces)


@dataclass(frozen=True)
class UnitRecord:
    """What a finished unit wrote; ``index_sha256`` by split."""

    number: int
    shards: dict[str, list[ShardRecord]]
    index_sha256: dict[str, str]
    counts: dict[str, int]


@dataclass(frozen=True)
class UnitSettings:
    """What a unit's output depends on besides its pieces."""

    inputs: InputSettings
    validation_fraction: float
    shard_bytes: int


def divide(pieces: Iterable[Piece], unit_bytes: int) -> list[Unit]:
    """Pack neighbouring pieces, long jsonl files cut first, to units of at least ``unit_bytes`` but for the last."""
    units: list[Unit] = []
    current: list[Piece] = []
    size = 0
    for piece in itertools.chain.from_iterable(sources.split_piece(piece, unit_bytes) for piece in pieces):
        current.append(piece)
        size += piece.bytes
        if size >= unit_bytes or len(current) == _MOST_PIECES:
            units.append(Unit(len(units), tuple(current)))
            current, size = [], 0
    if current:
        units.append(Unit(len(units), tuple(current)))
    return units


def split_of(text: bytes, validation_fraction: float) -> str:
    """The side of a document, by a hash of its content: equal documents never stand on both sides."""
    value = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
    return "validation" if value < int(validation_fraction * 2**64) else "train"


def record_path(directory: Path, number: int) -> Path:
    """Where a unit's record stands."""
    return directory / BUILD_DIRECTORY / f"unit-{number:06d}.json"


def index_part_path(directory: Path, number: int, split: str) -> Path:
    """Where a unit's part of a split's index stands until the build is finished."""
    return directory / BUILD_DIRECTORY / f"unit-{number:06d}-{split}.index"


def load_record(directory: Path, unit: Unit) -> UnitRecord | None:
    """The record of a unit that is finished with all its files in place, or None."""
    try:
        content = json.loads(record_path(directory, unit.number).read_bytes())
        record = UnitRecord(
            **content
            | {"shards": {name: [ShardRecord(**s) for s in shards] for name, shards in content["shards"].items()}}
        )
        intact = all(
            (directory / shard.name).stat().st_size == shard.bytes
            for shards in record.shards.values()
            for shard in shards
        ) and all(
            sha256_file(index_part_path(directory, unit.number, split)) == record.index_sha256[split]
            for split in SPLITS
        )
    except (FileNotFoundError, ValueError):
        return None
    return record if intact else None


def has_finished_units(directory: Path) -> bool:
    """Whether an unfinished build has finished a part of its work."""
    return any((directory / BUILD_DIRECTORY).glob("unit-*.json"))


class SplitWriter:
    """Writes one split of one unit, opening a further shard where the present one is full."""

    def __init__(self, directory: Path, unit: int, split: str, shard_bytes: int):
        self._directory, self._unit, self._split, self._shard_bytes = directory, unit, split, shard_bytes
        self._writer: ShardWriter | None = None
        self._documents = 0
        self.shards: list[ShardRecord] = []
        self._index: list[np.ndarray] = []

    def add(self, description: bytes, tokens: np.ndarray) -> None:
        """Append a document."""
        if self._writer is not None and self._writer.bytes + tokens.nbytes > self._shard_bytes:
            self._finish_shard(self._writer)
        if self._writer is None:
            name = f"{self._split}-{self._unit:06d}-{len(self.shards):03d}.tar"
            self._writer = ShardWriter(self._directory / name)
        self._writer.add(f"{self._unit:06d}-{self._documents:09d}", description, tokens)
        self._documents += 1

    def _finish_shard(self, writer: ShardWriter) -> None:
        record, index = writer.finish()
        index["shard"] = len(self.shards)
        self.shards.append(record)
        self._index.append(index)
        self._writer = None

    def finish(self) -> np.ndarray:
        """Commit the last shard; returns the index, ``INDEX_DTYPE`` [documents], shards counted within the unit."""
        if self._writer is not None:
            self._finish_shard(self._writer)
        return np.concatenate([np.zeros(0, dtype=INDEX_DTYPE), *self._index])

    def close(self) -> None:
        """Close an unfinished shard, after an error."""
        if self._writer is not None:
            self._writer.__exit__()


class _Batch(NamedTuple):
    documents: list[Document]
    bytes_read: int
    """Of the unit, from its beginning."""


def _batches(unit: Unit, settings: InputSettings, counts: dict[str, int]) -> Iterator[_Batch]:
    batch: list[Document] = []
    size = before = 0
    for piece in unit.pieces:
        for document in documents(piece, settings):
            if not document.text:
                counts[document.left_out or "empty_dropped"] += 1
                continue
            counts["documents"] += 1
            counts["text_bytes"] += len(document.text)
            batch.append(document)
            size += len(document.text)
            if size >= _BATCH_BYTES or len(batch) == _BATCH_DOCUMENTS:
                yield _Batch(batch, before + document.position)
                batch, size = [], 0
        before += piece.bytes
    yield _Batch(batch, before)


class _BatchProgress:
    """Reports the input of a batch as its text is encoded, which is what takes the time."""

    def __init__(self, report: Callable[[int], None], input_bytes: int, text_bytes: int):
        self._report = report
        self._remaining, self._share = input_bytes, input_bytes / max(1, text_bytes)

    def encoded(self, size: int) -> None:
        done = min(int(size * self._share), self._remaining)
        self._remaining -= done
        self._report(done)

    def finish(self) -> None:
        self._report(self._remaining)


def build_unit(
    directory: Path, unit: Unit, settings: UnitSettings, tokenizer: Tokenizer, report: Callable[[int], None]
) -> UnitRecord:
    """Tokenise a unit's documents into shards and commit them, the record last.

    Args:
        report: called again and again with the bytes of input done since the last call, in all those of the unit; may
            raise to give up the unit.

    Raises:
        DataError: an input that cannot be read as what it is.
    """
    dtype = token_dtype(tokenizer.vocabulary_size)
    counts = dict.fromkeys(("documents", "text_bytes", "empty_dropped", INVALID, NULL), 0)
    writers = {split: SplitWriter(directory, unit.number, split, settings.shard_bytes) for split in SPLITS}
    reported = 0
    with ExitStack() as closing:
        for writer in writers.values():
            closing.callback(writer.close)
        encoder = _encoder(directory, unit, tokenizer, closing)
        for batch, bytes_read in _batches(unit, settings.inputs, counts):
            texts = [document.text for document in batch]
            progress = _BatchProgress(report, bytes_read - reported, sum(map(len, texts)))
            encoded = encoder.encode(texts, progress.encoded)
            for document, ids in zip(batch, encoded, strict=True):
                tokens = np.empty(len(ids) + 1, dtype=dtype)
                tokens[:-1] = ids
                tokens[-1] = tokenizer.eos_id
                writers[split_of(document.text, settings.validation_fraction)].add(_description(document), tokens)
            progress.finish()
            reported = bytes_read
        index_sha256 = {}
        for split, writer in writers.items():
            index = writer.finish().tobytes()
            replace(index_part_path(directory, unit.number, split), index)
            index_sha256[split] = hashlib.sha256(index).hexdigest()
    record = UnitRecord(unit.number, {split: writers[split].shards for split in SPLITS}, index_sha256, counts)
    replace(record_path(directory, unit.number), json.dumps(asdict(record)).encode())
    _kept_path(directory, unit.number).unlink(missing_ok=True)
    return record


def _kept_path(directory: Path, number: int) -> Path:
    return directory / BUILD_DIRECTORY / f"unit-{number:06d}.encoded"


def _encoder(directory: Path, unit: Unit, tokenizer: Tokenizer, closing: ExitStack) -> DocumentEncoder | KeptEncoder:
    """One that keeps what it encodes where a piece of the unit is large and may be of any size."""
    encoder = DocumentEncoder(tokenizer)
    if not any(piece.bytes >= _KEPT_BYTES and _is_unbounded(piece) for piece in unit.pieces):
        return encoder
    file = closing.enter_context(open_kept(_kept_path(directory, unit.number)))
    return KeptEncoder(encoder, tokenizer.sha256, file)


def _is_unbounded(piece: Piece) -> bool:
    """Whether a piece is all of a file that cannot be entered in the middle: compressed, an array or a table.

    What is kept takes 4 bytes a token, twice what the shards do: a row group is not worth it, and of a plain text file,
    which is one document unless it can be divided, nothing could be kept before its end.
    """
    return piece.kind in ("json", "table") or (piece.kind == "text" and bool(kind_of(piece.path).compression))


def _description(document: Document) -> bytes:
    """What a shard says of a document's origin."""
    origin: dict[str, str | int] = {"source": document.source, "record": document.record}
    if document.part is not None:
        origin["part"] = document.part
    return json.dumps(origin).encode()
