"""The tools of the laws, run in the test's own process."""

import runpy
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def tool(monkeypatch, capsys):
    """Run a tool in this process; returns exit code, stdout and stderr."""

    def run(*arguments, name="fit_scaling_law.py"):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as ending:
            runpy.run_path(str(TOOLS / name), run_name="__main__")
        captured = capsys.readouterr()
        return ending.value.code, captured.out, captured.err

    return run
