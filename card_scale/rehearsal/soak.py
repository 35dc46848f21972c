"""A soak: a run that is disturbed again and again must end as one that was not."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from card_scale import faults
from card_scale.checkpoint import directory as directories
from card_scale.checkpoint.reader import CheckpointReader
from card_scale.data.ledger import read_ledger
from card_scale.data.ledger_check import LedgerReport, check_ledger
from card_scale.errors import CheckpointError, ExitCode
from card_scale.rehearsal.disturbances import Disturbance, Job, draw
from card_scale.training.run_directory import RunDirectory

DEADLINE_SECONDS = 600
"""In which a start of the command that is not disturbed any more must end."""

EXPECTED = {ExitCode.DONE, ExitCode.STOPPED, ExitCode.PEER_LOST, ExitCode.HANG, ExitCode.CHECKPOINT, 1}
"""Codes in exit.json after a disturbance; 1 is that of the fault ``exception``."""


class Layout(NamedTuple):
    """Ranks, and the overrides that say what they are."""

    ranks: int
    overrides: tuple[str, ...]


class Attempt(NamedTuple):
    """A start of the command."""

    layout: Layout
    what: str
    """Happened to it."""
    code: int | None
    """In exit.json; None where nobody could write it."""
    step: int
    """Of the newest checkpoint afterwards."""
    seconds: float


class Soak:
    """One run directory, disturbed.

    Args:
        arguments: of the command: configuration and overrides.
        directory: of the run.
        steps: of the whole run.
        seed: of what happens when.
        say: told of every attempt.
    """

    def __init__(
        self, arguments: Sequence[str], directory: Path, steps: int, seed: int, say: Callable[[str], None] = print
    ):
        self.arguments, self.directory, self.steps, self.say = arguments, RunDirectory(directory), steps, say
        self.random = random.Random(seed)

    def disturbed(self, layouts: Sequence[Layout], until: float) -> Iterator[Attempt]:
        """Start the command again and again, disturbing it ``until`` a time of the monotonic clock, then let it end."""
        number = 0
        while True:
            number += 1
            layout = self.random.choice(layouts)
            calm = time.monotonic() > until
            done = self.step()
            what = None if calm else draw(self.random, layout.ranks, range(done + 1, self.steps + 1))
            attempt = self.start(layout, what)
            self.say(
                f"attempt {number}: {layout.ranks} ranks {' '.join(layout.overrides)}: {attempt.what}: code "
                f"{attempt.code}, step {attempt.step}, {attempt.seconds:.0f} s"
            )
            yield attempt
            if attempt.code == ExitCode.DONE:
                return
            if attempt.code not in (*EXPECTED, None) or calm:
                raise CheckpointError(f"{attempt.what}: unexpected code {attempt.code}; see {self.directory.path}")

    def start(self, layout: Layout, what: Disturbance | None) -> Attempt:
        """Start the command once and wait for its end."""
        begin = time.monotonic()
        self.directory.path.mkdir(parents=True, exist_ok=True)
        self.directory.exit.unlink(missing_ok=True)
        with (self.directory.path / "soak.log").open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                self._command(layout), env=self._environment(what), stdout=log, stderr=log, start_new_session=True
            )
            try:
                if what is not None and not what.fault:
                    self._wait_for_progress(process)
                    what.act(Job(process.pid, self.directory))
                process.wait(DEADLINE_SECONDS)
            finally:
                _end_session(process)
        if what is not None:
            what.after(self.directory)
        code, _ = self.directory.read_exit() or (None, "")
        name = "nothing" if what is None else what.name
        return Attempt(layout, name, code, self.step(), time.monotonic() - begin)

    def step(self) -> int:
        """Return the step of the newest checkpoint, 0 without any."""
        return directories.pointed_step(self.directory.checkpoints) or 0

    def _wait_for_progress(self, process: subprocess.Popen) -> None:
        """Wait until updates are made again, and a while."""
        metrics = self.directory.metrics
        size = metrics.stat().st_size if metrics.is_file() else 0
        end = time.monotonic() + DEADLINE_SECONDS
        while process.poll() is None and time.monotonic() < end:
            if metrics.is_file() and metrics.stat().st_size > size:
                break
            size = min(size, metrics.stat().st_size) if metrics.is_file() else 0
            time.sleep(0.05)
        stop = time.monotonic() + self.random.expovariate(1 / 4.0)
        while process.poll() is None and time.monotonic() < stop:
            time.sleep(0.05)

    def _command(self, layout: Layout) -> list[str]:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(layout.ranks)]
        more = [*layout.overrides, f"run.dir={self.directory.path}", f"train.steps={self.steps}", "run.ledger=true"]
        return [*launch, "-m", "card_scale.train", *self.arguments, *more]

    @staticmethod
    def _environment(what: Disturbance | None) -> Mapping[str, str]:
        environment = dict(os.environ, OMP_NUM_THREADS="1")
        environment.pop(faults.VARIABLE, None)
        return environment | ({faults.VARIABLE: what.fault} if what is not None and what.fault else {})


def _end_session(process: subprocess.Popen) -> None:
    """Kill whatever is left of a start: ranks whose launcher was killed live on for a while."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


def final(directory: Path) -> Path:
    """Return the newest checkpoint of a run."""
    root = RunDirectory(directory).checkpoints
    return root / directories.name_of(directories.published_steps(root)[0])


def differences(one: Path, other: Path) -> dict[str, float]:
    """Return for each state of two checkpoints (weights, moments, average) the norm of the difference over the norm."""
    found = {}
    with CheckpointReader(one) as mine, CheckpointReader(other) as theirs:
        for key in mine.manifest.state_keys:
            pairs = ((mine.read(name, key).double(), theirs.read(name, key).double()) for name in mine.names())
            squares = [(float((a - b).square().sum()), float(b.square().sum())) for a, b in pairs]
            difference, whole = map(sum, zip(*squares, strict=True))
            found[key] = (difference / max(whole, 1e-300)) ** 0.5
    return found


def ledger_of(directory: Path) -> LedgerReport:
    """Return what a run's ledger shows."""
    run = RunDirectory(directory)
    return check_ledger(read_ledger(run.ledger), directories.pointed_step(run.checkpoints))
