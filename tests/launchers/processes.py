"""Starts launch scripts with a deadline and leaves none of their processes behind."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCHERS = REPOSITORY / "launchers"
STAND_IN = Path(__file__).parent / "stand_in"

_MARK = "CARD_SCALE_TEST_LAUNCH"


def environment(**variables: str) -> dict[str, str]:
    """Return an environment where the scripts find this Python's torchrun, without the variables that they default."""
    dropped = ("OMP_", "CUDA_DEVICE_MAX", "PYTORCH_", "TORCH_", "TORCHELASTIC_", "PYTHONFAULT", "SLURM_", "SBATCH_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
    for name in ("NPROC", "NNODES", "HEAD", "JOB_ID", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        kept.pop(name, None)
    python = Path(sys.executable).parent
    return kept | {"PATH": f"{python}:{kept['PATH']}", "VIRTUAL_ENV": str(python.parent)} | variables


class Processes:
    """Starts commands that share a mark in their environment; ``end`` kills whatever still carries it."""

    def __init__(self, output: Path):
        """Write each command's output to a file in the directory ``output``."""
        self.output = output
        self.mark = uuid.uuid4().hex
        self.started: list[subprocess.Popen] = []

    def start(self, command: list[str], cwd: Path, variables: Mapping[str, str]) -> subprocess.Popen:
        """Start a command as a terminal does: its own process group, signals at their defaults."""
        with (self.output / f"output-{len(self.started)}").open("w") as file:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**variables, _MARK: self.mark},
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                # A signal that is ignored at its start a shell cannot trap; whoever runs the tests may ignore SIGINT.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        self.started.append(process)
        return process

    def text(self, process: subprocess.Popen) -> str:
        """Return what the command has written so far."""
        return (self.output / f"output-{self.started.index(process)}").read_text()

    def wait(self, process: subprocess.Popen, seconds: float = 120.0) -> int:
        """Return the exit code; AssertionError with the output past the deadline."""
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not ended after {seconds:.0f} s:\n{self.text(process)}") from None

    def until(self, process: subprocess.Popen, condition: Callable[[], bool], seconds: float = 120.0) -> None:
        """Wait for a condition; AssertionError with the output if the command ends first or the deadline passes."""
        end = time.monotonic() + seconds
        while not condition():
            assert process.poll() is None, f"ended with {process.returncode}:\n{self.text(process)}"
            assert time.monotonic() < end, f"waited {seconds:.0f} s:\n{self.text(process)}"
            time.sleep(0.05)

    def alive(self) -> list[int]:
        """Return the process ids that carry the mark."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and f"{_MARK}={self.mark}".encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:  # ended meanwhile, or another user's
                continue
        return found

    def end(self) -> None:
        """Kill what is left and reap what was started."""
        for pid in self.alive():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for process in self.started:
            process.wait()
