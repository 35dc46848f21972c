"""Building units in several processes, of which this is one.

The other processes get units from the front while this one takes those from the back: it is at work while they start,
which for a small corpus is a good part of the time.
"""

import multiprocessing
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any, NamedTuple

from card_scale.corpus import units
from card_scale.corpus.processes import end_with_parent, interrupts_left_to_parent
from card_scale.corpus.units import Unit, UnitRecord, UnitSettings
from card_scale.data.tokenizer import Tokenizer
from card_scale.errors import DataError, StopRequested

_WAIT = 1.0  # seconds between two looks at what the other processes have read


def build_units(
    directory: Path,
    work: list[Unit],
    settings: UnitSettings,
    tokenizer: Tokenizer,
    workers: int,
    finished: Callable[[UnitRecord], None],
    read: Callable[[int], None],
) -> None:
    """Build units in ``workers`` processes and call ``finished`` for each as soon as it is.

    ``read`` is called again and again with the bytes of input that all of them have read since the last call. Raises
    DataError for an input that cannot be read as what it is, and where a process died.
    """
    if min(workers, len(work)) <= 1:
        for unit in work:
            finished(units.build_unit(directory, unit, settings, tokenizer, read))
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy whatever threads the caller has running
    others = min(workers, len(work)) - 1
    shared = _share(context, others)
    pool = ProcessPoolExecutor(others, context, _start_worker, (directory, settings, tokenizer.file_name, shared))
    waiting = deque(work)
    running: set[Future[UnitRecord]] = set()
    told = 0

    def hand_out() -> None:
        with interrupts_left_to_parent():
            while waiting and len(running) <= others:  # one more than is worked on, so that none has to wait for us
                running.add(pool.submit(_work, waiting.popleft()))

    def collect(read_here: int) -> None:
        nonlocal told
        for future in [future for future in running if future.done()]:
            running.remove(future)
            finished(future.result())
        hand_out()
        so_far = sum(shared.read)
        read(read_here + so_far - told)
        told = so_far

    try:
        hand_out()
        while waiting:
            finished(units.build_unit(directory, waiting.pop(), settings, tokenizer, collect))
            collect(0)
        while running:
            wait(running, timeout=_WAIT, return_when=FIRST_COMPLETED)
            collect(0)
    except BrokenProcessPool as error:
        raise DataError(
            f"{directory}: a worker process died (killed, or out of memory); run the same command again to go on, "
            "with fewer workers if memory is short"
        ) from error
    finally:
        shared.stop.value = (
            True  # on an error or Ctrl-C the workers give up at the next batch instead of finishing their unit
        )
        pool.shutdown(wait=True)


class _Shared(NamedTuple):
    """What all processes see.

    Without locks, each number being written by one process alone: a lock whose holder is killed is held for ever.
    """

    stop: Any
    """Whether to give up, which this process says."""
    read: Any
    """Bytes of input, by the slot of the other process that has read them."""
    slots: Any
    """A queue from which each other process takes its slot. Its lock is theirs: where one dies, all are ended."""


def _share(context: SpawnContext, others: int) -> _Shared:
    shared = _Shared(context.Value("b", lock=False), context.Array("Q", others, lock=False), context.SimpleQueue())
    for slot in range(others):
        shared.slots.put(slot)
    return shared


class _Worker:
    """What one worker process works with, set once by the pool's initializer: its only way to hand anything on."""

    directory: Path
    settings: UnitSettings
    tokenizer: Tokenizer
    shared: _Shared
    slot: int


def _start_worker(directory: Path, settings: UnitSettings, tokenizer_name: str, shared: _Shared) -> None:
    end_with_parent()
    _Worker.directory, _Worker.settings, _Worker.shared, _Worker.slot = directory, settings, shared, shared.slots.get()
    _Worker.tokenizer = Tokenizer.load(directory / tokenizer_name)


def _report(size: int) -> None:
    _Worker.shared.read[_Worker.slot] += size
    if _Worker.shared.stop.value:
        raise StopRequested("the build is stopping")


def _work(unit: Unit) -> UnitRecord:
    return units.build_unit(_Worker.directory, unit, _Worker.settings, _Worker.tokenizer, _report)
