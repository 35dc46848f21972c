"""The words by which gloo's errors are told apart are the words that gloo says."""

import datetime
import os
import signal
import time

import pytest
import torch
import torch.distributed as dist

from card_scale.errors import CheckpointError, ExitCode
from card_scale.training.ending import DEFECT, ending, lost_peer_or_hang
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


@pytest.mark.parametrize(
    "error, code, words",
    [
        (CheckpointError("no space"), ExitCode.CHECKPOINT, "no space"),
        (KeyboardInterrupt(), ExitCode.STOPPED, "interrupted"),
        (RuntimeError("Connection closed by peer"), ExitCode.PEER_LOST, "Connection closed by peer"),
        (RuntimeError("shape mismatch"), DEFECT, "RuntimeError: shape mismatch"),
        (OSError("gone"), DEFECT, "OSError: gone"),
    ],
)
def test_every_error_has_an_exit_code_and_a_reason(error, code, words):
    found, reason = ending(error)
    assert found == code
    assert words in reason
