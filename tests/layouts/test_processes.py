"""The harness of the multi-rank tests: results, failures, hangs, and nothing left behind."""

import gc
import os
import sys
import time

import pytest
import torch
import torch.distributed as dist

from tests.layouts.processes import run_ranks


def sum_of_ranks(offset):
    total = torch.tensor(dist.get_rank() + offset)
    dist.all_reduce(total)
    return dist.get_rank(), total, os.getpid(), "deepspeed" in sys.modules and gc.get_freeze_count() > 0


def fail_on_rank_one():
    if dist.get_rank() == 1:
        raise ValueError("a fault of rank one")
    dist.barrier()


def exit_with_code_three():
    sys.exit(3)


def hang_on_rank_zero(pid_file):
    if dist.get_rank() == 0:
        pid_file.write_text(str(os.getpid()))
        wait_for_ever()


def wait_for_ever():
    while True:
        time.sleep(0.1)


def test_ranks_talk_and_start_with_everything_imported():
    results = run_ranks(sum_of_ranks, 2, 10)
    # What the server imported is there, and frozen: no rank's garbage collector looks at it.
    assert [(rank, total) for rank, total, _, _ in results] == [(0, torch.tensor(21)), (1, torch.tensor(21))]
    assert all(preloaded for *_, preloaded in results)
    assert len({os.getpid(), *(pid for _, _, pid, _ in results)}) == 3


def test_a_failure_is_raised_with_its_traceback():
    with pytest.raises(AssertionError, match=r"(?s)rank 1:.*fail_on_rank_one.*a fault of rank one"):
        run_ranks(fail_on_rank_one, 2)


def test_an_expected_exit_is_returned():
    results = run_ranks(exit_with_code_three, 2, expect_failure=True)
    assert [exit_.code for exit_ in results] == [3, 3]


def test_a_hang_ends_with_the_stacks_and_without_the_process(tmp_path):
    pid_file = tmp_path / "pid"
    with pytest.raises(AssertionError, match=r"(?s)ranks \[0\] did not finish within 4 s.*wait_for_ever"):
        run_ranks(hang_on_rank_zero, 2, pid_file, deadline=4.0)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
