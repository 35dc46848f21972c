"""Building a dataset directory from text: parallel over processes, restartable, the same bytes for any worker count.

The inputs alone decide the units of work; a plan fixes them before the first unit starts, and every rerun must agree
with it. The manifest is written last. See :mod:`card_scale.corpus.units` for what happens inside a unit.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from card_scale.corpus import build_directory, sources, units
from card_scale.corpus.progress import Progress
from card_scale.corpus.source_documents import INVALID, NULL
from card_scale.corpus.unit_pool import build_units
from card_scale.corpus.units import BUILD_DIRECTORY, Unit, UnitRecord, UnitSettings
from card_scale.data.manifest import (
    MANIFEST_NAME,
    SPLITS,
    FileRecord,
    Manifest,
    Split,
    check_sizes,
    index_name,
    token_dtype,
)
from card_scale.data.shards import INDEX_DTYPE
from card_scale.data.tokenizer import Tokenizer
from card_scale.errors import DataError, StopRequested
from card_scale.files import commit, partial_path, sha256_file, sync_directory, write_atomically

# Enough units to keep many workers busy to the end, but shards neither tiny nor unwieldy: 1 TB of text gives 4,000.
_UNITS = 64
_SMALLEST_UNIT, _LARGEST_UNIT = 1 << 20, 1 << 28
DEFAULT_SHARD_BYTES = 1 << 29


@dataclass(frozen=True)
class BuildSettings:
    """What a dataset is made of and how; everything that its bytes depend on but the tokenizer.

    ``unit_bytes`` None chooses by the size of the inputs. ``shard_bytes`` bounds a shard, but for a single larger
    document.
    """

    inputs: sources.InputSettings
    validation_fraction: float
    unit_bytes: int | None = None
    shard_bytes: int = DEFAULT_SHARD_BYTES


@dataclass(frozen=True)
class BuildReport:
    """The manifest, and how many of the units were made by this call (0: the dataset was finished before)."""

    manifest: Manifest
    units: int
    built: int
    passed_over: Mapping[str, int]
    """How many of each kind of thing in the inputs are not read."""


def build_dataset(
    settings: BuildSettings, tokenizer_path: Path, directory: Path, workers: int, progress: bool = False
) -> BuildReport:
    """Build a dataset directory, or finish one that an earlier call left unfinished.

    Args:
        settings: inputs, split and sizes.
        tokenizer_path: sentencepiece model or tokenizer.json; a copy goes into the directory.
        directory: created if needed.
        workers: processes; has no influence on the result.
        progress: show on stderr how far it is.

    Raises:
        DataError: unreadable or empty inputs; a directory that was made with other settings, inputs or tokenizer,
            naming what differs; another build at work there.
        StopRequested: KeyboardInterrupt arrived; finished units are kept.
    """
    if not 0.0 <= settings.validation_fraction < 1.0:
        raise DataError(f"validation fraction {settings.validation_fraction}: must be at least 0 and below 1")
    tokenizer = Tokenizer.load(tokenizer_path)
    scan = sources.scan(settings.inputs)
    unit_bytes = settings.unit_bytes or min(_LARGEST_UNIT, max(_SMALLEST_UNIT, scan.bytes // _UNITS))
    work = units.divide(scan.pieces, unit_bytes)
    plan = _plan(settings, scan, tokenizer)
    # One with nothing left of its build is only read: several may look at it at once, also where none may write.
    if (directory / MANIFEST_NAME).exists() and not (directory / BUILD_DIRECTORY).exists():
        return BuildReport(_finished(directory, plan), len(work), 0, scan.passed_over)
    with build_directory.locked(directory):
        built = 0
        if (directory / MANIFEST_NAME).exists():  # the build that held the directory until now may have finished it
            manifest = _finished(directory, plan)
        else:
            build_directory.agree_on_plan(directory, plan, work)
            write_atomically(directory / tokenizer.file_name, tokenizer.content)
            unit_settings = UnitSettings(settings.inputs, settings.validation_fraction, settings.shard_bytes)
            records, built = _build_missing(directory, work, unit_settings, tokenizer, workers, progress)
            manifest = _assemble(directory, plan, tokenizer, records)
        build_directory.clean(directory)
    return BuildReport(manifest, len(work), built, scan.passed_over)


def _finished(directory: Path, plan: dict) -> Manifest:
    manifest = build_directory.finished(directory, plan)
    check_sizes(directory, manifest)
    return manifest


def _build_missing(
    directory: Path, work: list[Unit], settings: UnitSettings, tokenizer: Tokenizer, workers: int, progress: bool
) -> tuple[list[UnitRecord], int]:
    """Build the units that no earlier call has finished; return the records of all, and how many were built."""
    records = {unit.number: record for unit in work if (record := units.load_record(directory, unit))}
    missing = [unit for unit in work if unit.number not in records]
    done_before = sum(unit.bytes for unit in work if unit.number in records)

    def finished(record: UnitRecord) -> None:
        records[record.number] = record

    with Progress("build", sum(unit.bytes for unit in work), progress, done_before) as shown:
        try:
            build_units(directory, missing, settings, tokenizer, workers, finished, shown.update)
        except KeyboardInterrupt:
            raise StopRequested(
                f"{len(records)} of {len(work)} units of {directory} are finished and kept, and what "
                "is encoded of large files; run the same command again to go on"
            ) from None
    return [records[unit.number] for unit in work], len(missing)


def _plan(settings: BuildSettings, scan: sources.Scan, tokenizer: Tokenizer) -> dict[str, Any]:
    """What two runs must agree on, as JSON values. Paths are left out: the sources' fingerprints say more."""
    content = asdict(settings)
    del content["inputs"]["inputs"]
    return json.loads(json.dumps({"settings": content, "sources": scan.summaries(), "tokenizer": tokenizer.sha256}))


def _assemble(directory: Path, plan: dict, tokenizer: Tokenizer, records: list[UnitRecord]) -> Manifest:
    """Join the units' index parts and write the manifest."""
    counts = {key: sum(record.counts[key] for record in records) for key in records[0].counts} if records else {}
    splits = {split: _assemble_split(directory, split, records) for split in SPLITS}
    if problem := _emptiness(plan, counts, splits):
        build_directory.discard(directory)  # no call can finish what these settings give: another may begin anew
        raise DataError(f"{directory}: {problem}")
    model = directory / tokenizer.file_name
    manifest = Manifest(
        vocabulary_size=tokenizer.vocabulary_size,
        special_ids=tokenizer.special_ids,
        tokenizer=FileRecord(tokenizer.file_name, model.stat().st_size, sha256_file(model)),
        dtype=token_dtype(tokenizer.vocabulary_size).name,
        splits=splits,
        counts=counts,
        sources=tuple(plan["sources"]),
        settings=plan["settings"],
        rewrites=tokenizer.rewrites,
    )
    manifest.save(directory)
    return manifest


def _emptiness(plan: dict, counts: Mapping[str, int], splits: Mapping[str, Split]) -> str | None:
    """Why there is no dataset to be made, or None."""
    if not counts.get("documents"):
        names = ", ".join(source["name"] for source in plan["sources"])
        return (
            f"empty corpus: {names} hold no document with text ({counts.get('empty_dropped', 0)} empty, "
            f"{counts.get(NULL, 0)} null, {counts.get(INVALID, 0)} not UTF-8)"
        )
    fraction = plan["settings"]["validation_fraction"]
    for split, share in (("train", 1.0 - fraction), ("validation", fraction)):
        if share and not splits[split].documents:
            how = "a smaller" if plan["settings"]["inputs"]["split_documents"] else "the option"
            return (
                f"none of {counts['documents']} documents fell to {split} at --validation-fraction {fraction}, "
                f"{counts['text_bytes']} bytes of text in all; {how} --split-documents BYTES makes more documents of "
                "long ones; or choose another fraction (0 for no validation split)"
            )
    return None


def _assemble_split(directory: Path, split: str, records: list[UnitRecord]) -> Split:
    shards = tuple(shard for record in records for shard in record.shards[split])
    documents = sum(shard.documents for shard in shards)
    path = directory / index_name(split)
    with partial_path(path).open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(INDEX_DTYPE), "fortran_order": False, "shape": (documents,)}
        np.lib.format.write_array_header_1_0(file, header)
        first_shard = 0
        for record in records:
            part = np.fromfile(units.index_part_path(directory, record.number, split), dtype=INDEX_DTYPE)
            part["shard"] += first_shard
            first_shard += len(record.shards[split])
            file.write(part.tobytes())
        file.flush()
        os.fsync(file.fileno())
    commit(path)
    sync_directory(directory)
    index = FileRecord(path.name, path.stat().st_size, sha256_file(path))
    return Split(documents, sum(shard.tokens for shard in shards), index, shards)
