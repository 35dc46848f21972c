"""What a checkpoint costs: beside plain files of the same size on the same disk, and in training that goes on."""

import os
import secrets
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from card_scale.checkpoint.checkpointer import Checkpointer
from card_scale.checkpoint.commit import Publication, form_commit_group
from card_scale.checkpoint.format import CheckpointManifest
from card_scale.checkpoint.load import load
from card_scale.checkpoint.reader import CheckpointReader
from card_scale.checkpoint.retention import Retention
from card_scale.checkpoint.run_files import RunFiles
from card_scale.data.samples import Samples
from card_scale.distributed import process_groups
from card_scale.engine.base import ShardingEngine
from card_scale.files import write_whole
from card_scale.training.agreement import agree_on_damage
from card_scale.training.train_step import TrainStep

_CHUNK = 1 << 23


@dataclass(frozen=True)
class Round:
    """Seconds of one round, taken in turns; those of the slowest rank."""

    plain_write: float
    """Plain files of the checkpoint's size, forced to disk, one a rank."""
    save: float
    plain_read: float
    """The same files, not in memory."""
    load: float
    """Hashes and all, not in memory."""
    steps: float
    """Updates undisturbed."""
    copy: float
    """For which an asynchronous save keeps training waiting."""
    steps_beside: float
    """As many updates, begun as it was begun to be written."""
    wait: float
    """Until it was done, after these updates."""


class CheckpointCost:
    """Measures on one engine. Its methods are collective."""

    def __init__(
        self, engine: ShardingEngine, train_step: TrainStep, batch: Callable[[int], Samples], root: Path, steps: int
    ):
        """``batch`` as of runner.random_batches; ``steps`` updates are timed at a time. ``root`` is created."""
        self.engine, self.train_step, self.batch, self.root, self.steps = engine, train_step, batch, root, steps
        self.checkpointer = Checkpointer(root / "checkpoints", form_commit_group(3600))
        self._step = 0
        self._saves = 0
        root.mkdir(parents=True, exist_ok=True)
        if process_groups.is_main_rank():
            (root / "tokenizer.model").write_bytes(b"none")
        self._train()  # makes the optimizer's states
        self.bytes = 0
        """Of the checkpoint's tensors."""

    def rounds(self, count: int) -> Iterator[Round]:
        """Yield the seconds of each round, after one that is not counted."""
        for number in range(count + 1):
            found = self._round()
            if number:
                yield found

    def _round(self) -> Round:
        published: list[Path] = []
        save = _seconds(lambda: published.append(self._save(beside_training=False)))
        with CheckpointReader(published[0]) as reader:
            self.bytes = sum(file.bytes for file in reader.manifest.files.values())
            names = list(reader.manifest.files)
        plain = self.root / f"plain-{dist.get_rank()}"
        share = self.bytes // dist.get_world_size()
        plain_write = _seconds(lambda: _write(plain, share))
        _forget([plain, *(published[0] / name for name in names)])
        plain_read = _seconds(lambda: _read(plain))
        plain.unlink()
        loading = _seconds(lambda: self._load(published[0]))
        steps = _seconds(self._train)
        copy = _seconds(lambda: self._save(beside_training=True))
        steps_beside = _seconds(self._train)
        wait = _seconds(lambda: self.checkpointer.wait())
        return Round(plain_write, save, plain_read, loading, steps, copy, steps_beside, wait)

    def _save(self, *, beside_training: bool) -> Path:
        self._saves += 1
        description = CheckpointManifest(
            self._saves, list(self.engine.state_keys()), "measured", "measured", "none", "none", {}, {}, {}
        )
        run_files = RunFiles({"step": self._saves}, "run: {}\n", self.root / "tokenizer.model")
        publication = Publication(description, run_files, Retention(keep_last=2))
        return self.checkpointer.save(self.engine, publication, beside_training=beside_training) or self.root

    def _load(self, checkpoint: Path) -> None:
        with CheckpointReader(checkpoint) as reader:
            assert not agree_on_damage(checkpoint, reader.manifest)
            load(self.engine, reader)

    def _train(self) -> None:
        for _ in range(self.steps):
            self.train_step(self.batch(self._step), 1e-6)
            self._step += 1
        self.train_step.guard.look()  # waits for the device


def ratios(rounds: list[Round], steps: int) -> dict[str, float]:
    """Return the medians over rounds of what is compared within each."""
    step = [each.steps / steps for each in rounds]
    return {
        "write bandwidth, of plain files'": statistics.median(each.plain_write / each.save for each in rounds),
        "load bandwidth, of plain files'": statistics.median(each.plain_read / each.load for each in rounds),
        "save, in steps": statistics.median(each.save / seconds for each, seconds in zip(rounds, step, strict=True)),
        "copy of an asynchronous save, in steps": statistics.median(
            each.copy / seconds for each, seconds in zip(rounds, step, strict=True)
        ),
        "asynchronous save in all, in steps": statistics.median(
            (each.copy + each.steps_beside + each.wait - each.steps) / seconds
            for each, seconds in zip(rounds, step, strict=True)
        ),
    }


def _seconds(action: Callable[[], object]) -> float:
    """Time an action of all ranks, from a common begin to the last one's end."""
    dist.barrier()
    begin = time.perf_counter()
    action()
    dist.barrier()
    return time.perf_counter() - begin


def _write(path: Path, size: int) -> None:
    chunk = memoryview(secrets.token_bytes(_CHUNK))
    with path.open("wb", buffering=0) as file:
        for begin in range(0, size, _CHUNK):
            write_whole(file, chunk[: size - begin])
        os.fsync(file.fileno())


def _read(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(_CHUNK):
            pass


def _forget(paths: list[Path]) -> None:
    """Have the system drop files from memory, so that reading them is reading the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
