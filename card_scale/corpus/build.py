"""Building a dataset directory from text: parallel over processes, restartable, the same bytes for any worker count.

The inputs alone decide the units of work; a plan fixes them before the first unit starts, and every rerun must agree
with it. The manifest is written last. See :mod:`card_scale.corpus.units` for what happens inside a unit.
"""

import fcntl
import json
import multiprocessing
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from card_scale.corpus import sources, units
from card_scale.corpus.processes import end_with_parent, interrupts_left_to_parent
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
from card_scale.files import PARTIAL, commit, partial_path, sha256_file, sync_directory, write_atomically

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


def build_dataset(
    settings: BuildSettings, tokenizer_path: Path, directory: Path, workers: int, progress: bool = False
) -> BuildReport:
    """Build a dataset directory, or finish one that an earlier call left unfinished.

    Args:
        settings: inputs, split and sizes.
        tokenizer_path: sentencepiece model or tokenizer.json; a copy goes into the directory.
        directory: created if needed.
        workers: processes; has no influence on the result.
        progress: draw a bar on stderr.

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
    if (directory / MANIFEST_NAME).exists():
        return BuildReport(_finished(directory, plan), len(work), 0)
    (directory / BUILD_DIRECTORY).mkdir(parents=True, exist_ok=True)
    with _lock(directory):
        _agree_on_plan(directory, plan)
        write_atomically(directory / tokenizer.file_name, tokenizer.content)
        records = {unit.number: record for unit in work if (record := units.load_record(directory, unit))}
        missing = [unit for unit in work if unit.number not in records]
        unit_settings = UnitSettings(settings.inputs, settings.validation_fraction, settings.shard_bytes)
        with _bar(work, records, progress) as bar:

            def finished(record: UnitRecord) -> None:
                records[record.number] = record
                bar.update(work[record.number].bytes)

            try:
                _run(directory, missing, unit_settings, tokenizer, workers, finished)
            except KeyboardInterrupt:
                raise StopRequested(
                    f"{len(records)} of {len(work)} units of {directory} are finished and kept; "
                    "run the same command again to go on"
                ) from None
        manifest = _assemble(directory, plan, tokenizer, [records[unit.number] for unit in work])
    _clean(directory)
    return BuildReport(manifest, len(work), len(missing))


def _bar(work: list[Unit], records: dict[int, UnitRecord], progress: bool) -> tqdm:
    return tqdm(
        total=sum(unit.bytes for unit in work),
        initial=sum(unit.bytes for unit in work if unit.number in records),
        unit="B",
        unit_scale=True,
        desc="build",
        disable=not progress,
    )


def _plan(settings: BuildSettings, scan: sources.Scan, tokenizer: Tokenizer) -> dict[str, Any]:
    """What two runs must agree on, as JSON values. Paths are left out: the sources' fingerprints say more."""
    content = asdict(settings)
    del content["inputs"]["inputs"]
    return json.loads(json.dumps({"settings": content, "sources": scan.summaries(), "tokenizer": tokenizer.sha256}))


def _finished(directory: Path, plan: dict) -> Manifest:
    manifest = Manifest.load(directory)
    made = {
        "settings": manifest.settings,
        "sources": list(manifest.sources),
        "tokenizer": manifest.tokenizer.sha256,
    }
    _refuse_difference(directory, made, plan)
    check_sizes(directory, manifest)
    _clean(directory)
    return manifest


def _refuse_difference(directory: Path, existing: dict, plan: dict) -> None:
    differences = sources.differences(existing, plan)
    if differences:
        raise DataError(
            f"{directory} was made otherwise: {'; '.join(differences)}; choose another directory or remove this one"
        )


def _agree_on_plan(directory: Path, plan: dict) -> None:
    path = directory / BUILD_DIRECTORY / "plan.json"
    if path.exists():
        try:
            existing = json.loads(path.read_bytes())
        except ValueError as error:
            raise DataError(f"{path}: not valid JSON ({error}); remove {directory} and build again") from error
        _refuse_difference(directory, existing, plan)
    else:
        foreign = sorted(entry.name for entry in directory.iterdir() if entry.name != BUILD_DIRECTORY)
        if foreign:
            raise DataError(f"{directory}: holds {foreign[0]!r} and is no dataset; choose an empty or new directory")
        write_atomically(path, json.dumps(plan, indent=1).encode())


@contextmanager
def _lock(directory: Path) -> Iterator[None]:
    """Hold the directory for this process; the system lets go of it even after a kill."""
    with (directory / BUILD_DIRECTORY / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"{directory}: another build is at work there; wait for it or stop it") from error
        yield


def _run(
    directory: Path,
    work: list[Unit],
    settings: UnitSettings,
    tokenizer: Tokenizer,
    workers: int,
    finished: Callable[[UnitRecord], None],
) -> None:
    """Build the units in ``workers`` processes, of which this is one, and report each as soon as it is finished.

    The other processes get units from the front while this one takes those from the back: it is at work while they
    start, which for a small corpus is a good part of the time.
    """
    if min(workers, len(work)) <= 1:
        for unit in work:
            finished(units.build_unit(directory, unit, settings, tokenizer, check_stop=_go_on))
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy whatever threads the caller has running
    stop = context.Event()
    others = min(workers, len(work)) - 1
    pool = ProcessPoolExecutor(others, context, _start_worker, (directory, settings, tokenizer.file_name, stop))
    waiting = deque(work)
    running: set[Future[UnitRecord]] = set()

    def hand_out() -> None:
        with interrupts_left_to_parent():
            while waiting and len(running) <= others:  # one more than is worked on, so that none has to wait for us
                running.add(pool.submit(_work, waiting.popleft()))

    def collect() -> None:
        for future in [future for future in running if future.done()]:
            running.remove(future)
            finished(future.result())
        hand_out()

    try:
        hand_out()
        while waiting:
            finished(units.build_unit(directory, waiting.pop(), settings, tokenizer, check_stop=collect))
            collect()
        while running:
            wait(running, return_when=FIRST_COMPLETED)
            collect()
    except BrokenProcessPool as error:
        raise DataError(
            f"{directory}: a worker process died (killed, or out of memory); run the same command again to go on, "
            "with fewer workers if memory is short"
        ) from error
    finally:
        stop.set()  # on an error or Ctrl-C the workers give up at the next batch instead of finishing their unit
        pool.shutdown(wait=True)


def _go_on() -> None:
    """In a single process a stop arrives as KeyboardInterrupt by itself."""


class _Worker:
    """What one worker process works with, set once by the pool's initializer: its only way to hand anything on."""

    directory: Path
    settings: UnitSettings
    tokenizer: Tokenizer
    stop: Any


def _start_worker(directory: Path, settings: UnitSettings, tokenizer_name: str, stop: Any) -> None:
    end_with_parent()
    _Worker.directory, _Worker.settings, _Worker.stop = directory, settings, stop
    _Worker.tokenizer = Tokenizer.load(directory / tokenizer_name)


def _check_stop() -> None:
    if _Worker.stop.is_set():
        raise StopRequested("the build is stopping")


def _work(unit: Unit) -> UnitRecord:
    return units.build_unit(_Worker.directory, unit, _Worker.settings, _Worker.tokenizer, _check_stop)


def _assemble(directory: Path, plan: dict, tokenizer: Tokenizer, records: list[UnitRecord]) -> Manifest:
    """Join the units' index parts and write the manifest."""
    counts = {key: sum(record.counts[key] for record in records) for key in records[0].counts} if records else {}
    if not counts.get("documents"):
        names = ", ".join(source["name"] for source in plan["sources"])
        raise DataError(
            f"empty corpus: {names} hold no document with text ({counts.get('empty_dropped', 0)} empty, "
            f"{counts.get('invalid_skipped', 0)} not UTF-8)"
        )
    splits = {split: _assemble_split(directory, split, records) for split in SPLITS}
    fraction = plan["settings"]["validation_fraction"]
    for split, share in (("train", 1.0 - fraction), ("validation", fraction)):
        if share and not splits[split].documents:
            raise DataError(
                f"{directory}: none of {counts['documents']} documents fell to {split} at --validation-fraction "
                f"{fraction}; remove the directory and build with another fraction (0 for no validation split)"
            )
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


def _clean(directory: Path) -> None:
    """Remove what only an unfinished build needs, and what interrupted ones left."""
    for path in directory.glob(f"*{PARTIAL}"):
        path.unlink(missing_ok=True)
    shutil.rmtree(directory / BUILD_DIRECTORY, ignore_errors=True)
