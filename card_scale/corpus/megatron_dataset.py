"""Megatron's indexed datasets (``PREFIX.bin`` and ``PREFIX.idx``), whose tokens become a dataset here as they are.

The index is little-endian: the mark, version 1 (uint64), a code for the type of the tokens (uint8), the number of
sequences and one more than that of documents (uint64 each), then each sequence's length (int32) and place in the other
file in bytes (int64), and the numbers of the sequences at which the documents begin and the last one ends (int64).
"""

import io
import itertools
import json
import os
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from tqdm import tqdm

from card_scale.corpus.units import SplitWriter, split_of
from card_scale.data.manifest import SPLITS, TOKENS_FROM, FileRecord, Manifest, Split, index_name, token_dtype
from card_scale.data.tokenizer import Tokenizer
from card_scale.errors import DataError
from card_scale.files import sha256_file, sync_directory, write_atomically

_MARK = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_TYPES = MappingProxyType({1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"})
"""Of tokens, by Megatron's code. Codes 6 and 7 are floating-point numbers, which are no tokens."""
_SHOWN_CHARACTERS = 80
_BOUNDS = 1 << 16  # of documents that are Python's integers at once, of which each takes several times its 8 bytes


class MegatronDataset:
    """Reads the documents of an indexed dataset at random; ``name`` is that of its files without their ending.

    Raises:
        DataError: a file that is missing, of another format, cut off, or at odds with the other; naming it.
    """

    def __init__(self, prefix: Path):
        self.name = prefix.name
        self.index_path, self.tokens_path = (prefix.with_name(f"{prefix.name}{end}") for end in (".idx", ".bin"))
        for path in (self.index_path, self.tokens_path):
            if not path.is_file():
                raise DataError(f"{path}: no such file; a Megatron dataset is a PREFIX.bin beside a PREFIX.idx")
        self.bytes = self.tokens_path.stat().st_size
        self._read_index()
        self._check_index()
        self._tokens = np.memmap(self.tokens_path, mode="r") if self.bytes else np.zeros(0, dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._documents) - 1

    def _read_index(self) -> None:
        path, size = self.index_path, self.index_path.stat().st_size
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
            if header[: len(_MARK)] != _MARK:
                raise DataError(f"{path}: begins with {header[: len(_MARK)]!r}, a Megatron index with {_MARK!r}")
            if len(header) < _HEADER.size:
                raise DataError(f"{path}: cut off: {size} bytes, its header alone has {_HEADER.size}")
            _, version, code, sequences, documents = _HEADER.unpack(header)
            if version != 1:
                raise DataError(f"{path}: version {version} of the format; this reads version 1")
            if code not in _TYPES:
                valid = ", ".join(f"{known} ({np.dtype(kind)})" for known, kind in _TYPES.items())
                raise DataError(f"{path}: type code {code} is none of tokens; valid are {valid}")
            expected = _HEADER.size + 12 * sequences + 8 * documents
            if size == expected + sequences and sequences:
                raise DataError(f"{path}: a multimodal dataset (it has a mode for each sequence), which is not read")
            if size != expected:
                raise DataError(
                    f"{path}: {size} bytes, with {sequences} sequences and {documents - 1} documents it has {expected}"
                )
            self._dtype = np.dtype(_TYPES[code])
            self._lengths = np.fromfile(file, "<i4", sequences)
            self._places = np.fromfile(file, "<i8", sequences)
            self._documents = np.fromfile(file, "<i8", documents)

    def _check_index(self) -> None:
        path, bounds, sequences = self.index_path, self._documents, len(self._lengths)
        ends = self._places + self._lengths.astype(np.int64) * self._dtype.itemsize
        if sequences and (self._lengths.min() < 0 or self._places.min() < 0):
            raise DataError(f"{path}: damaged: a sequence of negative length or place")
        if sequences and ends.max() > self.bytes:
            raise DataError(
                f"{self.tokens_path}: {self.bytes} bytes, but {path.name} names tokens up to byte {ends.max()}; one of "
                "them is cut off or belongs to another dataset"
            )
        if not len(bounds) or bounds[0] != 0 or bounds[-1] != sequences or (np.diff(bounds) < 0).any():
            last = int(bounds[-1]) if len(bounds) else 0
            raise DataError(
                f"{path}: damaged or unfinished: its documents end at sequence {last}, and it has {sequences}"
            )

    def documents(self) -> Iterator[np.ndarray]:
        """Read the tokens of each document in order, integers [tokens]."""
        slices = (self._documents[first : first + _BOUNDS + 1].tolist() for first in range(0, len(self), _BOUNDS))
        for begin, end in itertools.chain.from_iterable(map(itertools.pairwise, slices)):
            parts = [
                np.frombuffer(self._tokens, self._dtype, length, place)
                for length, place in zip(
                    self._lengths[begin:end].tolist(), self._places[begin:end].tolist(), strict=True
                )
                if length
            ]
            yield parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, dtype=self._dtype), *parts])


@dataclass(frozen=True)
class ImportSettings:
    """What a dataset is made of and how.

    The files may be named with or without their ending; the two of one dataset are one input.
    """

    inputs: tuple[Path, ...]
    validation_fraction: float
    shard_bytes: int


def import_megatron(
    settings: ImportSettings, tokenizer_path: Path, directory: Path, progress: bool = False
) -> tuple[Manifest, str]:
    """Make a dataset directory of the tokens of Megatron's.

    Documents keep their tokens and their order; an EOS at the end is taken for the document's end, elsewhere it stays.

    Args:
        settings: inputs, split and sizes.
        tokenizer_path: of the tokenizer that made the tokens, which their files do not name.
        directory: to create.
        progress: draw a bar on stderr.

    Returns:
        The manifest, and the beginning of the first document as text, by which a wrong tokenizer is seen.

    Raises:
        DataError: a directory that is there already, an input that is damaged or given twice, ids that the tokenizer
            does not have, or [MASK].
    """
    if directory.exists():
        raise DataError(f"{directory} exists; choose another directory or remove it")
    tokenizer = Tokenizer.load(tokenizer_path)
    datasets = [MegatronDataset(prefix) for prefix in _prefixes(settings.inputs)]
    temporary = directory.with_name(f"{directory.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    model = temporary / tokenizer.file_name
    write_atomically(model, tokenizer.content)
    splits, counts, opening = _write(datasets, tokenizer, temporary, settings, progress)
    if not splits["train"].documents:
        raise DataError(f"{', '.join(str(path) for path in settings.inputs)}: no document with tokens for train")
    manifest = Manifest(
        vocabulary_size=tokenizer.vocabulary_size,
        special_ids=tokenizer.special_ids,
        tokenizer=FileRecord(model.name, model.stat().st_size, tokenizer.sha256),
        dtype=token_dtype(tokenizer.vocabulary_size).name,
        splits=splits,
        counts=counts,
        sources=tuple(_summary(dataset) for dataset in datasets),
        settings={
            TOKENS_FROM: "megatron",
            "validation_fraction": settings.validation_fraction,
            "shard_bytes": settings.shard_bytes,
        },
    )
    manifest.save(temporary)
    temporary.rename(directory)
    sync_directory(directory.parent)
    return manifest, opening


def _prefixes(inputs: tuple[Path, ...]) -> list[Path]:
    """Each dataset once, in order, however many of its files are named; a path that is there twice is a mistake."""
    seen: set[str] = set()
    prefixes: dict[str, Path] = {}
    for path in inputs:
        identity = os.path.realpath(path)
        if identity in seen:
            raise DataError(f"{path}: an input twice; name each once")
        seen.add(identity)
        prefix = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
        prefixes.setdefault(os.path.realpath(prefix), prefix)
    return list(prefixes.values())


def _write(
    datasets: list[MegatronDataset], tokenizer: Tokenizer, directory: Path, settings: ImportSettings, progress: bool
) -> tuple[dict[str, Split], dict[str, int], str]:
    """Write all shards and indexes; return the splits, the counts and how the first document begins."""
    writers = {split: SplitWriter(directory, 0, split, settings.shard_bytes) for split in SPLITS}
    counts = {"documents": 0, "text_bytes": 0, "empty_dropped": 0, "invalid_skipped": 0}
    text_bytes = np.array([len(tokenizer.piece_bytes(token)) for token in range(tokenizer.vocabulary_size)])
    opening = ""
    documents = _checked_documents(datasets, tokenizer)
    total = sum(map(len, datasets))
    try:
        for origin, tokens in tqdm(documents, total=total, unit=" documents", desc="import", disable=not progress):
            if len(tokens) == 1:
                counts["empty_dropped"] += 1
                continue
            counts["documents"] += 1
            counts["text_bytes"] += int(text_bytes[tokens].sum())
            opening = opening or tokenizer.decode(tokens[:_SHOWN_CHARACTERS])[:_SHOWN_CHARACTERS]
            side = split_of(tokens[:-1].tobytes(), settings.validation_fraction)
            writers[side].add(json.dumps(origin).encode(), tokens)
        return {split: _finished(directory, split, writer) for split, writer in writers.items()}, counts, opening
    finally:
        for writer in writers.values():
            writer.close()


def _checked_documents(datasets: list[MegatronDataset], tokenizer: Tokenizer) -> Iterator[tuple[dict, np.ndarray]]:
    """Where each document is from, and its tokens as they are stored, with one EOS at their end."""
    dtype = token_dtype(tokenizer.vocabulary_size)
    for dataset in datasets:
        for number, ids in enumerate(dataset.documents()):
            where = f"{dataset.tokens_path}: document {number} holds"
            if len(ids) and not 0 <= ids.min() <= ids.max() < tokenizer.vocabulary_size:
                worst = ids.min() if ids.min() < 0 else ids.max()
                raise DataError(
                    f"{where} id {worst}, the tokenizer has {tokenizer.vocabulary_size}; give the one they are from"
                )
            if (ids == tokenizer.mask_id).any():
                raise DataError(f"{where} id {tokenizer.mask_id}, which is {tokenizer.piece(tokenizer.mask_id)}")
            ids = ids[:-1] if len(ids) and ids[-1] == tokenizer.eos_id else ids
            tokens = np.empty(len(ids) + 1, dtype=dtype)
            tokens[:-1], tokens[-1] = ids, tokenizer.eos_id
            yield {"source": dataset.name, "record": number}, tokens


def _finished(directory: Path, split: str, writer: SplitWriter) -> Split:
    content = io.BytesIO()
    index = writer.finish()
    np.save(content, index)
    path = directory / index_name(split)
    write_atomically(path, content.getvalue())
    record = FileRecord(path.name, path.stat().st_size, sha256_file(path))
    return Split(len(index), int(index["tokens"].sum()), record, tuple(writer.shards))


def _summary(dataset: MegatronDataset) -> dict:
    """As the manifest of a dataset made of text has it."""
    total = dataset.bytes + dataset.index_path.stat().st_size
    fingerprint = sha256_file(dataset.index_path)[:16]
    return {"name": dataset.name, "files": 2, "bytes": total, "fingerprint": fingerprint}
