"""What holds for all tests."""

import os
import signal

from hypothesis import settings

# Triton reads this once, when it is first imported, which DeepSpeed does: its kernels run on a CPU, for tests.
os.environ.setdefault("TRITON_INTERPRET", "1")

pytest_plugins = ["tests.corpora", "tests.hostile"]

# A machine under load is slow; that is no failure of what is tested. Multi-process tests have deadlines of their own.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_configure() -> None:
    """Undo what a shell does to its background jobs: they ignore Ctrl-C, and so would the programs that tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
