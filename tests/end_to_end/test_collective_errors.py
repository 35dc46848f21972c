"""The words by which gloo's errors are told apart are the words that gloo says."""

import datetime
import os
import signal
import time

import torch
import torch.distributed as dist

from card_scale.errors import ExitCode
from card_scale.train import lost_peer_or_hang
from tests.layouts.processes import run_ranks


def wait_for_a_silent_peer() -> int | None:
    group = dist.new_group(timeout=datetime.timedelta(seconds=1))
    if dist.get_rank() == 1:
        time.sleep(4)
        return None
    try:
        dist.all_reduce(torch.zeros(1), group=group)
    except RuntimeError as error:
        return lost_peer_or_hang(error)
    return None


def test_a_peer_that_does_not_come_is_a_hang():
    assert run_ranks(wait_for_a_silent_peer, 2, deadline=30)[0] == ExitCode.HANG


def wait_for_a_dead_peer() -> int | None:
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        dist.all_reduce(torch.zeros(1))
    except RuntimeError as error:
        return lost_peer_or_hang(error)
    return None


def test_a_peer_that_dies_is_lost():
    assert run_ranks(wait_for_a_dead_peer, 2, deadline=30, expect_failure=True)[0] == ExitCode.PEER_LOST


def test_another_error_is_neither():
    assert lost_peer_or_hang(RuntimeError("shape mismatch")) is None
