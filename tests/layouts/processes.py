"""Runs a function on several ranks with a deadline.

Ranks are forked from a server process that has imported torch, DeepSpeed and Megatron once: a rank starts in
milliseconds and leaves nothing behind for the next test.
"""

import faulthandler
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

PRELOADED = [
    "card_scale.train",
    "card_scale.parallel.deepspeed_engine",
    "card_scale.parallel.fsdp2_engine",
    "tests.layouts.trajectory",
]


def run_ranks(
    function: Callable[..., Any],
    world_size: int,
    *arguments: Any,
    deadline: float = 120.0,
    expect_failure: bool = False,
) -> list[Any]:
    """Return ``function(*arguments)`` of every rank, in rank order.

    The ranks are joined in a gloo job (RANK, WORLD_SIZE, ... are set). A rank's exception is raised here with its
    traceback; past the deadline every rank dumps its stacks and is killed. With ``expect_failure`` a rank's exception is
    returned in place of its result.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as scratch:
        processes, pipes = [], {}
        for rank in range(world_size):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(
                target=_rank_main, args=(sender, scratch, rank, world_size, deadline, function, arguments)
            )
            process.start()
            sender.close()
            processes.append(process)
            pipes[receiver] = rank
        results: dict[int, tuple[bool, Any]] = {}
        end = time.monotonic() + deadline
        failed = False
        while len(results) < world_size and time.monotonic() < end and not (failed and not expect_failure):
            for ready in multiprocessing.connection.wait([p for p, r in pipes.items() if r not in results], 0.5):
                try:
                    results[pipes[ready]] = ready.recv()
                except EOFError:
                    results[pipes[ready]] = (False, f"rank {pipes[ready]} died without a word")
                failed = failed or not results[pipes[ready]][0]
        missing = [rank for rank in range(world_size) if rank not in results]
        for process in processes:
            process.join(5.0 if not missing and not failed else 0.1)
            if process.is_alive():
                os.killpg(process.pid, signal.SIGKILL)
                process.join()
        stacks = "\n".join(p.read_text() for p in sorted(Path(scratch).glob("stacks-*")) if p.stat().st_size)
    errors = [f"rank {rank}: {value}" for rank, (fine, value) in sorted(results.items()) if not fine]
    if errors and not expect_failure:
        raise AssertionError("\n".join(errors))
    if missing:
        raise AssertionError(f"ranks {missing} did not finish within {deadline:.0f} s\n{stacks}")
    return [results[rank][1] for rank in range(world_size)]


def _rank_main(sender, scratch, rank, world_size, deadline, function, arguments) -> None:
    os.setpgid(0, 0)
    stacks = open(Path(scratch) / f"stacks-{rank}", "w")  # noqa: SIM115 - must outlive this function
    faulthandler.dump_traceback_later(max(1.0, deadline - 2.0), file=stacks)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), OMP_NUM_THREADS="1")
    import datetime

    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{scratch}/rendezvous",
            rank=rank,
            world_size=world_size,
            timeout=datetime.timedelta(seconds=deadline),
        )
        sender.send((True, function(*arguments)))
    except BaseException as error:
        sender.send((False, error if isinstance(error, SystemExit) else traceback.format_exc()))
    sys.stdout.flush()
    sys.stderr.flush()
    # Skip teardown: a peer that failed would keep it waiting.
    os._exit(0)
