"""Full verification of a dataset directory: every byte is hashed, every member read and compared with the index."""

import io
import json
import tarfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from card_scale.corpus.processes import process_map
from card_scale.corpus.progress import Progress
from card_scale.data.arrays import read_array
from card_scale.data.manifest import TOKENS_FROM, Manifest, Split, check_hash, load_excluded, load_index, size_problem
from card_scale.data.shards import END_MARKER, NPY_HEADER_BYTES, ShardRecord
from card_scale.data.tokenizer import Tokenizer
from card_scale.errors import DataError
from card_scale.files import sha256_file

_STRAY_PATTERNS = ("train-*.tar", "validation-*.tar", "excluded-*.npy", "*.partial")
_MOST_PROBLEMS = 10  # of one shard


class Expected(NamedTuple):
    """What every document of a dataset must be."""

    dtype: str
    vocabulary_size: int
    eos_id: int
    forbidden: tuple[int, ...]
    """Ids that stand nowhere but for EOS at the end: those that no text gives; of imported tokens [MASK] alone."""


def verify_dataset(directory: Path, workers: int = 1, progress: bool = False) -> list[str]:
    """Check everything that a dataset directory claims.

    The manifest's own checksum; the tokenizer's and the indexes' hashes; each shard's size, SHA-256, end marker,
    members, their order and format, document and token counts, agreement with the index, ids inside the vocabulary,
    EOS at the end of each document and no control symbol elsewhere; the list of excluded validation documents; files
    that nothing lists.

    Args:
        directory: dataset directory.
        workers: processes that read shards.
        progress: show on stderr how far it is.

    Returns:
        One line per problem, each naming its file; empty for a sound dataset.

    Raises:
        DataError: no readable manifest.
    """
    manifest = Manifest.load(directory)
    problems = [*_tokenizer_problems(directory, manifest), *_exclusion_problems(directory, manifest)]
    listed = {manifest.decontamination.excluded.name} if manifest.decontamination else set()
    jobs = []
    for split in manifest.splits.values():
        listed |= {shard.name for shard in split.shards}
        index, problem = _read_index(directory, split)
        problems += [problem] if problem else []
        for number, shard in enumerate(split.shards):
            rows = None if index is None else index[slice(*np.searchsorted(index["shard"], [number, number + 1]))]
            jobs.append((shard, rows))
    check = partial(_shard_problems, directory, _expected(manifest))
    size = sum(shard.bytes for shard, _ in jobs)
    with (
        process_map(min(workers, len(jobs))) as apply,
        Progress("verify", size, progress) as bar,
    ):
        for (shard, _), found in zip(jobs, apply(check, *zip(*jobs, strict=True)) if jobs else (), strict=True):
            problems += found
            bar.update(shard.bytes)
    for pattern in _STRAY_PATTERNS:
        for path in sorted(directory.glob(pattern)):
            if path.name not in listed:
                problems.append(f"{path}: not listed in the manifest, never read; remove it")
    return problems


def _expected(manifest: Manifest) -> Expected:
    special = manifest.special_ids
    forbidden = {special["mask"]}
    if TOKENS_FROM not in manifest.settings:
        forbidden |= {token for role, token in special.items() if role != "unk"}
    return Expected(manifest.dtype, manifest.vocabulary_size, special["eos"], tuple(sorted(forbidden)))


def _tokenizer_problems(directory: Path, manifest: Manifest) -> list[str]:
    if problem := size_problem(directory, manifest.tokenizer):
        return [problem]
    try:
        check_hash(directory, manifest.tokenizer)
        tokenizer = Tokenizer.load(directory / manifest.tokenizer.name)
    except DataError as error:
        return [str(error)]
    path = directory / manifest.tokenizer.name
    if (tokenizer.vocabulary_size, tokenizer.special_ids) != (manifest.vocabulary_size, manifest.special_ids):
        return [
            f"{path}: {tokenizer.vocabulary_size} pieces, special ids {tokenizer.special_ids}; the manifest says "
            f"{manifest.vocabulary_size}, {manifest.special_ids}"
        ]
    return []


def _exclusion_problems(directory: Path, manifest: Manifest) -> list[str]:
    record = manifest.decontamination
    if record is None:
        return []
    if problem := size_problem(directory, record.excluded):
        return [problem]
    try:
        load_excluded(directory, manifest, "validation")
    except DataError as error:
        return [str(error)]
    return []


def _read_index(directory: Path, split: Split) -> tuple[np.ndarray | None, str | None]:
    if problem := size_problem(directory, split.index):
        return None, problem
    try:
        return load_index(directory, split), None
    except DataError as error:
        return None, str(error)


def _shard_problems(directory: Path, expected: Expected, shard: ShardRecord, rows: np.ndarray | None) -> list[str]:
    path = directory / shard.name
    problems = []
    if problem := size_problem(directory, shard):
        problems.append(problem)
        if not path.is_file():
            return problems
    elif (found := sha256_file(path)) != shard.sha256:
        problems.append(f"{path}: SHA-256 {found}, expected {shard.sha256}")
    try:
        for problem in _content_problems(path, expected, shard, rows):
            problems.append(f"{path}: {problem}")
            if len(problems) >= _MOST_PROBLEMS:
                return [*problems, f"{path}: has further problems"]
    except tarfile.TarError as error:
        problems.append(f"{path}: not a sound tar archive ({error})")
    return problems


def _content_problems(path: Path, expected: Expected, shard: ShardRecord, rows: np.ndarray | None) -> Iterator[str]:
    documents = tokens = 0
    end = 0
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
        previous = None
        for member in archive:
            end = member.offset_data + member.size + -member.size % tarfile.BLOCKSIZE
            key, _, kind = member.name.partition(".")
            if not member.isfile() or "/" in member.name:
                yield f"member {member.name}: no plain file of the shard"
            elif kind == "json":
                if not _is_json_object(member_bytes(archive, member)):
                    yield f"member {member.name}: not a JSON object"
            elif kind != "npy" or previous != key + ".json":
                yield f"member {member.name}: expected a .json and then a .npy of each document"
            else:
                data = member_bytes(archive, member)
                row = rows[documents] if rows is not None and documents < len(rows) else None
                array, problem = _document_problem(data, expected, member.offset_data, row)
                if problem:
                    yield f"member {member.name}: {problem}"
                documents += 1
                tokens += 0 if array is None else len(array)
            previous = member.name
        file.seek(end)
        if file.read(len(END_MARKER)) != END_MARKER:
            yield f"no end-of-archive marker at byte {end}"
    if (documents, tokens) != (shard.documents, shard.tokens):
        yield f"{documents} documents, {tokens} tokens; expected {shard.documents} documents, {shard.tokens} tokens"
    if rows is not None and len(rows) != shard.documents:
        yield f"the index has {len(rows)} documents of it, the manifest {shard.documents}"


def member_bytes(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The content of a member; empty for one that is no file, which a sound shard does not have.

    A link would lead to another member, to none, or to itself.
    """
    file = archive.extractfile(member) if member.isfile() else None
    return b"" if file is None else file.read()


def _is_json_object(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), dict)
    except ValueError:
        return False


def _document_problem(
    data: bytes, expected: Expected, offset: int, row: np.ndarray | None
) -> tuple[np.ndarray | None, str | None]:
    try:
        array = read_array(io.BytesIO(data))
    except ValueError as error:
        return None, f"not a .npy array ({error})"
    if array.dtype != np.dtype(expected.dtype) or array.ndim != 1 or not len(array):
        return (
            None,
            f"{array.dtype} array of shape {array.shape}, expected a non-empty one-dimensional {expected.dtype}",
        )
    if array.max() >= expected.vocabulary_size:
        return array, f"token id {array.max()} is outside the vocabulary of {expected.vocabulary_size}"
    if array[-1] != expected.eos_id:
        return array, f"ends with id {array[-1]}, expected EOS ({expected.eos_id})"
    control = np.isin(array[:-1], expected.forbidden)
    if control.any():
        place = int(control.argmax())
        return array, f"control id {array[place]} at token {place}: text never gives one"
    if row is not None:
        listed = (int(row["offset"]), int(row["tokens"]), int(row["crc32"]))
        found = (offset + NPY_HEADER_BYTES, len(array), zlib.crc32(data[NPY_HEADER_BYTES:]))
        if found != listed:
            return array, f"offset, tokens, checksum {found}; the index says {listed}"
    return array, None
