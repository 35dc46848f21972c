"""The start of a branch: its trunk's checkpoint, given once."""

import pytest
import torch

from card_scale.checkpoint import directory as directories
from card_scale.checkpoint.format import StoredPiece
from card_scale.checkpoint.retention import Retention, prune
from card_scale.errors import CheckpointError
from card_scale.studies import branches
from card_scale.studies.tasks import BranchPoint
from card_scale.training.run_directory import RunDirectory
from tests.checkpoint.handmade import publish


def save(run: RunDirectory, *steps: int) -> None:
    for step in steps:
        states = {"weight": {"w": torch.full((4,), float(step))}}
        publish(run.checkpoints, step, states, {"w": (0, [StoredPiece("a", 0, 4)])})


@pytest.fixture
def trunk(tmp_path):
    """The run directory of a trunk with checkpoints at 10 and 20."""
    run = RunDirectory(tmp_path / "trunk")
    save(run, 10, 20)
    run.metrics.write_text("")
    return run


def test_a_branch_begins_at_its_point(trunk, tmp_path):
    run = RunDirectory(tmp_path / "branch")
    branches.seed(run.path, BranchPoint(trunk.path, 10, "leg"))
    assert directories.find_latest(run.checkpoints)[1].step == 10


def test_a_branch_that_has_pruned_its_beginning_goes_on(trunk, tmp_path):
    run = RunDirectory(tmp_path / "branch")
    branches.seed(run.path, BranchPoint(trunk.path, 10, "leg"))
    save(run, 12, 14)
    prune(run.checkpoints, Retention(keep_last=2))
    branches.seed(run.path, BranchPoint(trunk.path, 10, "leg"))
    assert directories.published_steps(run.checkpoints) == [14, 12]
    assert directories.find_latest(run.checkpoints)[1].step == 14
    assert directories.published_steps(trunk.checkpoints) == [20, 10]


def test_a_pruned_branching_point_is_named(trunk, tmp_path):
    with pytest.raises(CheckpointError, match=r"iter_0000005 is missing.*keep_last"):
        branches.seed(tmp_path / "branch", BranchPoint(trunk.path, 5, "leg"))
