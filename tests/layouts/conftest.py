"""Fixtures of the multi-rank tests."""

import pytest

from tests.layouts.parity import References


@pytest.fixture(scope="session")
def references() -> References:
    """One-rank trajectories, shared by all tests of a session."""
    return References()
