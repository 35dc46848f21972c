"""Which rank says how a command ended."""

import platform

import pytest

from card_scale.errors import CheckpointError, ConfigurationError, ExitCode, OutOfMemory, OwnRankError
from card_scale.train import main
from card_scale.training.ending import finish


@pytest.mark.parametrize("rank, of_all_ranks, says", [("0", True, True), ("3", True, False), ("3", False, True)])
def test_once_where_every_rank_ends_so(monkeypatch, capsys, rank, of_all_ranks, says):
    monkeypatch.setenv("RANK", rank)
    assert finish(None, ExitCode.CONFIGURATION, "no such key", of_all_ranks=of_all_ranks) == 3
    assert capsys.readouterr().err == ("error: no such key\n" if says else "")


def test_an_error_of_all_ranks_is_said_once_a_machine(monkeypatch, capsys):
    """Which may be the only one that lacks a file."""
    for rank, local_rank, local_task, says in ((8, 0, 0, True), (9, 1, 0, False), (9, 0, 1, False)):
        for name, value in (("RANK", rank), ("LOCAL_RANK", local_rank), ("SLURM_LOCALID", local_task)):
            monkeypatch.setenv(name, str(value))
        finish(None, ExitCode.CONFIGURATION, "no such file", of_all_ranks=True)
        said = f"error: rank {rank} on {platform.node()}: no such file\n"
        assert capsys.readouterr().err == (said if says else "")
        finish(None, ExitCode.STOPPED, "asked to", of_all_ranks=True)
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "error, says",
    [
        (ConfigurationError("wrong"), False),
        (OwnRankError("wrong"), True),
        (OutOfMemory("wrong"), True),
        (CheckpointError("wrong"), True),
    ],
)
def test_a_rank_says_what_may_be_its_own(monkeypatch, capsys, error, says):
    def refuse(*_):
        raise error

    monkeypatch.setattr("card_scale.train.configs.load", refuse)
    monkeypatch.setenv("RANK", "3")
    assert main(["config.yaml"]) == error.exit_code
    assert capsys.readouterr().err == ("error: wrong\n" if says else "")
