"""Worker processes that neither outlive their parent nor answer a Ctrl-C meant for it."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from card_scale.errors import DataError


@contextmanager
def interrupts_left_to_parent() -> Iterator[None]:
    """Start processes inside: they inherit blocked interrupts.

    Ctrl-C reaches the whole process group; the parent, where one that comes meanwhile is only delayed, decides.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """Call in a worker: it ends as soon as its parent is gone, also by ``kill -9``.

    A worker left behind would still write into the directory of the next build.
    """
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def process_map(workers: int) -> Iterator[Callable]:
    """A ``map`` that works in this process, or from two ``workers`` on in so many others; results come in order.

    Raises:
        DataError: a worker process died.
    """
    if workers <= 1:
        yield map
        return
    # a fork would copy whatever threads the caller has running
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), end_with_parent)

    def apply(function: Callable, *arguments: Iterable) -> Iterator:
        with interrupts_left_to_parent():
            return pool.map(function, *arguments)

    try:
        yield apply
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process died (killed, or out of memory); run the same command again, with fewer workers if "
            "memory is short"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)  # after Ctrl-C: what is being worked on, and no more
