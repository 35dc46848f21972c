"""Which rank says how a command ended."""

import pytest

from card_scale.errors import CheckpointError, ConfigurationError, ExitCode, OutOfMemory, OwnRankError
from card_scale.train import finish, main


@pytest.mark.parametrize("rank, of_all_ranks, says", [("0", True, True), ("3", True, False), ("3", False, True)])
def test_once_where_every_rank_ends_so(monkeypatch, capsys, rank, of_all_ranks, says):
    monkeypatch.setenv("RANK", rank)
    assert finish(None, ExitCode.CONFIGURATION, "no such key", of_all_ranks=of_all_ranks) == 3
    assert capsys.readouterr().err == ("error: no such key\n" if says else "")


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
