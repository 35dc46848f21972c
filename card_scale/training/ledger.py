"""A run's sample ledger: each data-parallel rank writes down what its updates saw, for ``tools/data.py ledger``."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist

from card_scale.config import Config
from card_scale.data.ledger import Header, file_name
from card_scale.data.samples import Samples
from card_scale.distributed import process_groups
from card_scale.errors import DataError
from card_scale.files import write_whole
from card_scale.training.agreement import agree_on_attempt
from card_scale.training.run_checkpoints import Start
from card_scale.training.run_data import RunData
from card_scale.training.run_directory import RunDirectory


class Ledger:
    """What a rank's updates saw. This one, of a rank or a run that keeps no ledger, writes nothing."""

    def trained(self, step: int, samples: Samples) -> None:
        """Record that update ``step`` (counted from 1) was made from those of these rows that count."""

    def skipped(self, step: int) -> None:
        """Record that update ``step`` was not applied, also where it was recorded as made. Its positions count as lost
        unless later updates train on them or :meth:`passed_over` names them. To be called on all ranks."""

    def passed_over(self, first: int, last: int) -> None:
        """Record that the global positions from ``first`` to ``last`` are not to be trained on.

        It holds from the last update recorded before it: an attempt that resumes before that one is expected to train
        on them, or to record this again."""

    def close(self) -> None:
        """Close the file."""


class WritingLedger(Ledger):
    """That of the rank which writes for its tensor x pipeline group.

    Each line is handed to the operating system before the method returns: a process that is killed loses none, and so
    no checkpoint contains an update that is not recorded.
    """

    def __init__(self, attempt: Path, header: Header):
        """Begin this rank's file in the directory of an attempt."""
        self._path = attempt / file_name(header.data_parallel_rank)
        # Unbuffered: what the disk has refused must not be tried again, and refused anew, when the file is closed.
        self._file = self._path.open("xb", buffering=0)
        self._write(header.to_line())

    def trained(self, step: int, samples: Samples) -> None:
        if samples.valid is not None:
            for position in samples.global_positions[~samples.valid].tolist():
                self.passed_over(position, position)
            samples = samples.rows(samples.valid)
        columns = {"epochs": samples.epochs, "samples": samples.sample_ids, "positions": samples.global_positions}
        self._record({"step": step} | {name: column.tolist() for name, column in columns.items()})

    def skipped(self, step: int) -> None:
        self._record({"step": step, "skipped": True})

    def passed_over(self, first: int, last: int) -> None:
        self._record({"passed_over": [first, last]})

    def close(self) -> None:
        self._file.close()

    def _record(self, content: dict[str, object]) -> None:
        self._write(json.dumps(content, separators=(",", ":")))

    def _write(self, line: str) -> None:
        try:
            write_whole(self._file, f"{line}\n".encode())
        except OSError as error:
            raise DataError(
                f"{self._path}: {error.strerror}; run.ledger=true makes no update that is not recorded"
            ) from error


def open_ledger(config: Config, directory: RunDirectory, data: RunData, start: Start) -> Ledger:
    """Return this rank's ledger for the updates from ``start`` on. Collective."""
    if not config.run.ledger:
        return Ledger()
    attempt = agree_on_attempt(directory.ledger)
    if process_groups.tensor_rank() or process_groups.pipeline_rank():
        return Ledger()
    header = Header(
        start=start.step,
        data_parallel_rank=process_groups.data_rank(),
        data_parallel_size=dist.get_world_size(process_groups.data_group()),
        global_batch=config.train.global_batch,
        samples_per_epoch=data.train.sample_count,
        dataset=data.train.manifest.digest,
        seed=config.run.seed,
        reshuffle=config.data.reshuffle,
    )
    ledger = WritingLedger(attempt, header)
    if start.left_out:
        end = (start.step + start.passed_over) * config.train.global_batch
        ledger.passed_over(end - start.left_out * config.train.global_batch, end - 1)
    return ledger


def record_refusals(ledger: Ledger, steps: Sequence[int], passed_over: int, global_batch: int) -> None:
    """Record updates that were not applied, whose batches are not tried again.

    Args:
        ledger: of the run.
        steps: of the updates, counted from 1.
        passed_over: batches that the run had passed over by then.
        global_batch: samples in a batch.
    """
    for step in steps:
        ledger.skipped(step)
        first = (step - 1 + passed_over) * global_batch
        ledger.passed_over(first, first + global_batch - 1)
