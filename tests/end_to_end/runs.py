"""The command as a rank runs it, with or without a fault on purpose, and how the ends of runs are compared."""

import contextlib
import io
import os
from pathlib import Path

from card_scale.checkpoint import directory as directories
from card_scale.checkpoint.reader import CheckpointReader
from card_scale.data.ledger import read_ledger
from card_scale.data.ledger_check import LedgerReport, check_ledger
from card_scale.faults import VARIABLE


def train(arguments: list[str]) -> int:
    from card_scale.train import main

    return main(arguments)


KEEP_TWO = ["train.save_every=1", "train.keep_last=2", "train.eval_every=6"]


def train_with(fault: str, arguments: list[str]) -> int:
    os.environ[VARIABLE] = fault
    return train(arguments)


def train_and_hear(fault: str, arguments: list[str]) -> tuple[int, str]:
    with contextlib.redirect_stderr(io.StringIO()) as said:
        return train_with(fault, arguments), said.getvalue()


def train_and_watch(fault: str, arguments: list[str]) -> tuple[int, str]:
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        return train_with(fault, arguments), shown.getvalue()


def assert_same_checkpoint(found: Path, expected: Path) -> None:
    """Bit for bit: the same layout made both."""
    with CheckpointReader(found) as mine, CheckpointReader(expected) as theirs:
        assert mine.state == theirs.state
        for name in theirs.names():
            for key in theirs.manifest.state_keys:
                assert mine.read(name, key).equal(theirs.read(name, key)), (name, key)


def checked_ledger(run: Path) -> LedgerReport:
    """What a run's ledger shows: that it was exact."""
    report = check_ledger(read_ledger(run / "ledger"), directories.pointed_step(run / "checkpoints"))
    assert report.is_exact, report.text()
    return report
