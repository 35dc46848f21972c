"""What the main rank does, every rank gets: the value, or the error."""

import os

import pytest
import torch.distributed as dist

from card_scale.distributed.process_groups import by_main_rank
from card_scale.errors import CheckpointError
from tests.layouts.processes import run_ranks


def outcomes() -> list[str]:
    group = dist.new_group(backend="gloo")

    def fail(error: Exception):
        assert dist.get_rank() == 0
        raise error

    found = [by_main_rank(lambda: f"of {os.environ['RANK']}"), by_main_rank(lambda: "in a group", group)]
    for error in (CheckpointError("no space"), OSError(28, "full")):
        with pytest.raises(type(error)) as caught:
            by_main_rank(lambda error=error: fail(error), group)
        found.append(str(caught.value))
    return found


def test_every_rank_gets_the_value_or_the_error():
    assert run_ranks(outcomes, 3) == [["of 0", "in a group", "no space", "[Errno 28] full"]] * 3
