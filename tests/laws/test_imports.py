"""What importing the laws costs: a command that only reads a table, or a plan, must answer at once."""

import subprocess
import sys
from pathlib import Path

import card_scale.laws

MODULES = sorted(f"card_scale.laws.{path.stem}" for path in Path(card_scale.laws.__file__).parent.glob("[a-z]*.py"))


def loaded_of(modules: list[str], libraries: list[str]) -> list[str]:
    """Return which of the libraries a fresh interpreter has loaded once it has imported the modules."""
    code = f"import sys, {', '.join(modules)}; print(*(name for name in {libraries!r} if name in sys.modules))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_no_law_needs_torch_or_what_takes_as_long():
    assert loaded_of(MODULES, ["torch", "megatron", "matplotlib", "pandas", "pyarrow", "scipy.stats"]) == []


def test_a_table_is_read_without_scipy():
    assert loaded_of(["card_scale.laws.table"], ["scipy"]) == []
