"""Batches of a data-parallel rank: any step at random, one step ahead in the background."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from card_scale import faults
from card_scale.data.order import epoch_order, locate, rank_places
from card_scale.data.samples import Samples
from card_scale.data.stream import PackedStream
from card_scale.errors import DataError


class GlobalBatchLoader:
    """The training batches of one data-parallel rank as a function of the step.

    Global position g = step * global_batch + i is place g % sample_count of epoch g // sample_count; a batch may
    straddle epochs. Ranks of one tensor x pipeline group give the same rank here and get the same batch.
    """

    def __init__(
        self,
        stream: PackedStream,
        *,
        global_batch: int,
        micro_batch: int,
        data_parallel_rank: int,
        data_parallel_size: int,
        seed: int,
        reshuffle: bool = True,
        skip_damaged: bool = False,
        pinned: bool = False,
    ):
        """Prepare to read; nothing is read yet.

        Args:
            stream: where samples come from.
            global_batch: samples in a step over all ranks.
            micro_batch: samples in one forward pass of a rank.
            data_parallel_rank: this rank, in [0, data_parallel_size).
            data_parallel_size: number of data-parallel ranks.
            seed: decides the order of samples.
            reshuffle: a new order every epoch; False repeats that of epoch 0.
            skip_damaged: mark samples that cannot be read as not valid, instead of raising.
            pinned: batches for a GPU, which copies them without waiting.

        Raises:
            ConfigurationError: sizes that do not divide, naming them.
        """
        self._stream = stream
        self._skip_damaged = skip_damaged
        self._pinned = pinned
        self.problems: dict[int, DataError] = {}
        """What was wrong with samples that are not valid, by their id."""
        self._global_batch = global_batch
        self._places = rank_places(global_batch, micro_batch, data_parallel_rank, data_parallel_size)
        self._seed = seed
        self._reshuffle = reshuffle
        self._orders: dict[int, np.ndarray] = {}  # used by the one background thread only
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batch-loader")
        self._next: tuple[tuple[int, int], Future[Samples]] | None = None
        self._waited_seconds = 0.0

    def rank_batch(self, step: int, passed_over: int = 0) -> Samples:
        """This rank's rows of one update, micro-batch major, on the CPU.

        Afterwards the next step's are read in the background.

        Args:
            step: update index from 0; any order, at the same cost, so that a resume needs no replay.
            passed_over: batches left out before it: the batch is that of update ``step + passed_over``.

        Raises:
            DataError: damage met while reading, also of a batch that was read ahead.
            ValueError: a negative step.
        """
        if step < 0:
            raise ValueError(f"step {step} must not be negative")
        if self._next is not None and self._next[0] == (step, passed_over):
            future = self._next[1]
        else:
            future = self._executor.submit(self._read, step, passed_over)
        self._next = None
        asked = time.monotonic()
        batch = future.result()
        self._waited_seconds += time.monotonic() - asked
        self._next = ((step + 1, passed_over), self._executor.submit(self._read, step + 1, passed_over))
        return batch

    def take_waited_seconds(self) -> float:
        """The seconds that batches were waited for since the last call."""
        waited, self._waited_seconds = self._waited_seconds, 0.0
        return waited

    def close(self) -> None:
        """Wait for the background read and end its thread. Further batches are refused."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._next = None

    def __enter__(self) -> "GlobalBatchLoader":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _read(self, step: int, passed_over: int) -> Samples:
        faults.reach("data.batch", step + 1)
        global_positions = (step + passed_over) * self._global_batch + self._places
        epochs, places = locate(global_positions, self._stream.sample_count)
        sample_ids = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            rows = epochs == epoch
            sample_ids[rows] = self._order(epoch)[places[rows]]
        valid = None
        if self._skip_damaged:
            tokens, problems = self._stream.readable_samples(sample_ids)
            valid = torch.ones(len(tokens), dtype=torch.bool)
            for row, problem in problems.items():
                valid[row] = False
                self.problems[int(sample_ids[row])] = problem
        else:
            tokens = self._stream.samples(sample_ids)
        batch = Samples(
            tokens=torch.from_numpy(tokens),
            sample_ids=torch.from_numpy(sample_ids),
            epochs=torch.from_numpy(epochs),
            global_positions=torch.from_numpy(global_positions),
            batch_size=self._global_batch,
            valid=valid,
            update=step,
        )
        return batch.pinned() if self._pinned else batch

    def _order(self, epoch: int) -> np.ndarray:
        key = epoch if self._reshuffle else 0
        if key not in self._orders:
            for old in [other for other in self._orders if other != key - 1]:
                del self._orders[old]  # a straddling batch needs two epochs; more would only cost memory
            self._orders[key] = epoch_order(self._seed, key, self._stream.sample_count)
        return self._orders[key]


class EvaluationBatches:
    """Given samples of a stream once, in order, as equally many equal batches on every rank.

    They are dealt like a training step's: batch b holds those at [b * global_batch, (b + 1) * global_batch). The last
    batch is filled up with its first sample, marked as not valid, so that no rank runs out earlier than another.
    """

    def __init__(
        self,
        stream: PackedStream,
        sample_ids: np.ndarray,
        *,
        global_batch: int,
        micro_batch: int,
        data_parallel_rank: int,
        data_parallel_size: int,
    ):
        """Prepare to read.

        Args:
            stream: where samples come from.
            sample_ids: int64 [N], which of them.
            global_batch: samples in a batch over all ranks.
            micro_batch: samples in one forward pass of a rank.
            data_parallel_rank: this rank, in [0, data_parallel_size).
            data_parallel_size: number of data-parallel ranks.

        Raises:
            ConfigurationError: sizes that do not divide, naming them.
        """
        self._stream = stream
        self._sample_ids = sample_ids
        self._global_batch = global_batch
        self._places = rank_places(global_batch, micro_batch, data_parallel_rank, data_parallel_size)

    @property
    def sample_count(self) -> int:
        """Samples that are read, over all ranks."""
        return len(self._sample_ids)

    def __len__(self) -> int:
        """Number of batches, the same on every rank."""
        return -(-self.sample_count // self._global_batch)

    def __iter__(self) -> Iterator[Samples]:
        """The batches, from the first at every call; the whole set counts as one global batch."""
        for batch in range(len(self)):
            first = batch * self._global_batch
            places = first + self._places
            valid = places < self.sample_count
            places = np.where(valid, places, first)
            sample_ids = self._sample_ids[places]
            ids = torch.from_numpy(sample_ids)
            try:
                tokens = torch.from_numpy(self._stream.samples(sample_ids))
            except DataError as error:
                # Not left out, as in training: a loss of other samples could be compared with no other.
                raise DataError(f"{error}; an evaluation needs all of its samples, data.skip_damaged or not") from None
            yield Samples(
                tokens, ids, torch.zeros_like(ids), torch.from_numpy(places), self.sample_count, torch.from_numpy(valid)
            )
