"""The command-line tool of checkpoints, run in the test's process."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools/checkpoint.py"

Tool = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tool(monkeypatch, capsys) -> Tool:
    """Function that runs the tool in this process; returns (exit code, what it printed, what it complained of)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["checkpoint", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(TOOL), run_name="__main__")
        return end.value.code, *capsys.readouterr()

    return run
