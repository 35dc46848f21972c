"""Worker processes that neither outlive their parent nor answer a Ctrl-C meant for it."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


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
