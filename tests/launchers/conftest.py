"""Fixtures of the launcher tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launchers.processes import Processes


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Commands of this test, killed with all their descendants at its end."""
    started = Processes(tmp_path)
    try:
        yield started
    finally:
        started.end()
