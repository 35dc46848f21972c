"""Runs a function on several ranks with a deadline.

Ranks are forked from a server process that has imported torch, DeepSpeed and Megatron once: a rank starts in
milliseconds and leaves nothing behind for the next test.
"""

import contextlib
import datetime
import faulthandler
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

PRELOADED = [
    # What the modules of tests import, which a rank imports for its function.
    "pytest",
    "hypothesis.strategies",
    "card_scale.train",
    "card_scale.engine.deepspeed.engine",
    "card_scale.engine.fsdp2.engine",
    "tests.layouts.trajectory",
    "tests.layouts.freeze",
]

GRACE_SECONDS = 2.0
"""After a rank's failure, the time in which the others may report theirs: the first to fail is often a victim."""


def run_ranks(
    function: Callable[..., Any],
    world_size: int,
    *arguments: Any,
    deadline: float = 120.0,
    expect_failure: bool = False,
) -> list[Any]:
    """Return ``function(*arguments)`` of every rank, in rank order.

    The ranks are joined in a gloo job (RANK, WORLD_SIZE, ... are set). A rank's exception is raised here with its
    traceback; past the deadline every rank dumps its stacks and is killed. With ``expect_failure`` a rank's exception
    is returned in place of its result: SystemExit as such, any other as its traceback in text.
    """
    context = _fork_server()
    # Plain pickling copies tensors; multiprocessing's own would share memory with a rank that has ended.
    job = pickle.dumps((function, arguments))
    processes: list[Any] = []
    receivers: list[multiprocessing.connection.Connection] = []
    with tempfile.TemporaryDirectory() as scratch:
        try:
            for rank in range(world_size):
                receiver, sender = context.Pipe(duplex=False)
                receivers.append(receiver)
                process = context.Process(target=_rank_main, args=(sender, scratch, rank, world_size, deadline, job))
                process.start()
                sender.close()
                processes.append(process)
            results = _collect(receivers, time.monotonic() + deadline, expect_failure)
            if len(results) == world_size and all(fine for fine, _ in results.values()):
                for process in processes:
                    process.join(GRACE_SECONDS)
        finally:
            for process in processes:
                _end(process)
        stacks = {rank: _text(Path(scratch) / f"stacks-{rank}") for rank in range(world_size)}
    late = [rank for rank in range(world_size) if stacks[rank] or rank not in results]
    errors = [f"rank {rank}: {value}" for rank, (fine, value) in sorted(results.items()) if not fine]
    if (errors and not expect_failure) or late:
        if late:
            errors.append(f"ranks {late} did not finish within {deadline:.0f} s")
        raise AssertionError("\n".join([*errors, *(f"rank {rank}:\n{stacks[rank]}" for rank in late)]))
    return [results[rank][1] for rank in range(world_size)]


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _fork_server() -> Any:
    """Return the context whose processes are forked from a server with everything imported; start it if needed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    # The server does not inherit sys.path (Python 3.11): without this it would preload nothing, and every rank import
    # everything, where pytest runs in another directory than the repository's.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), *([before] if before else [])])
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context


def _collect(
    receivers: list[multiprocessing.connection.Connection], end: float, expect_failure: bool
) -> dict[int, tuple[bool, Any]]:
    """Return (succeeded, result or error) by rank, of the ranks that reported before ``end`` (monotonic seconds)."""
    results: dict[int, tuple[bool, Any]] = {}
    while len(results) < len(receivers) and time.monotonic() < end:
        pending = [receiver for rank, receiver in enumerate(receivers) if rank not in results]
        for ready in multiprocessing.connection.wait(pending, 0.2):
            rank = receivers.index(ready)
            try:
                results[rank] = pickle.loads(ready.recv_bytes())
            except EOFError:
                results[rank] = (False, "died without a word")
            if not results[rank][0] and not expect_failure:
                end = min(end, time.monotonic() + GRACE_SECONDS)
    return results


def _end(process: Any) -> None:
    """Kill a rank that still runs, and whatever it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.is_alive():
        process.kill()
    process.join()


def _rank_main(sender, scratch, rank, world_size, deadline, job) -> None:
    os.setpgid(0, 0)
    stacks = open(Path(scratch) / f"stacks-{rank}", "w")  # noqa: SIM115 - must outlive this function
    # Leaves the stacks a little before the deadline, and ends the rank even where nobody is left to kill it.
    faulthandler.dump_traceback_later(max(1.0, deadline - 2.0), exit=True, file=stacks)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), OMP_NUM_THREADS="1")
    # torchrun's; the ranks meet in a file.
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="1")
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        timeout = datetime.timedelta(seconds=deadline)
        store = dist.FileStore(f"{scratch}/rendezvous", world_size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timeout)
        # A rank whose function ends at once would else leave while its peers still connect to it.
        store.set(f"connected-{rank}", "")
        store.wait([f"connected-{peer}" for peer in range(world_size)], timeout)
        function, arguments = pickle.loads(job)
        sender.send_bytes(pickle.dumps((True, function(*arguments))))
    except BaseException as error:
        shown = error if isinstance(error, SystemExit) else traceback.format_exc()
        sender.send_bytes(pickle.dumps((False, shown)))
    sys.stdout.flush()
    sys.stderr.flush()
    # Skip teardown: a peer that failed would keep it waiting.
    os._exit(0)
