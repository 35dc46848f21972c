"""How a command ended, as a file, and what a launch script and the ranks that it started here tell each other.

torchrun returns 1 for any rank's code, so the code stands in ``exit.json`` in the run directory. Where that directory
is another run's, and for whoever asked for a stop, a launch script keeps a directory of notes as long as its job runs.
"""

import contextlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

from card_scale.errors import ExitCode

NAME = "exit.json"

NOTES = "CARD_LAUNCH_NOTES"
"""Environment variable: the directory of notes."""


def write(path: Path, code: ExitCode | int, reason: str, earlier: bytes | None = None) -> None:
    """Record how the command ended. Any rank may call it; the first failure of a job is the one that counts.

    ``earlier``: what :func:`content` was when the command began, which is of another.
    """
    if code in (ExitCode.PEER_LOST, ExitCode.HANG) and content(path) not in (None, earlier):
        return  # the peer said itself why it left, or the first to see a hang who hangs
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several ranks may fail at once, on several machines: each writes its own file before one of them takes the name.
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        temporary.write_text(json.dumps({"code": int(code), "reason": reason}, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def supersede(path: Path, code: ExitCode | int, reason: str) -> None:
    """Record how a command ended whose configuration was refused, where an earlier one's record would pass for it.

    Where there is none nothing is written: the directory may be that of a run that goes on.
    """
    with contextlib.suppress(OSError):  # of a directory that is not known to be this command's
        if path.is_file():
            write(path, code, reason)


def content(path: Path) -> bytes | None:
    """Return what a record holds, None where there is none that can be read."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def note_for_launcher(environment: Mapping[str, str], code: ExitCode | int, reason: str) -> None:
    """Tell a launch script how this rank ended, where one is there."""
    if NOTES in environment:
        write(Path(environment[NOTES]) / NAME, code, reason)


def cause_of_stop(environment: Mapping[str, str]) -> str | None:
    """Return what a launch script heard before it sent SIGUSR1 on to its ranks, None where nothing is known."""
    if NOTES not in environment:
        return None
    try:
        return (Path(environment[NOTES]) / "stop").read_text(encoding="utf-8").strip() or None
    except OSError:  # the signal is not the script's
        return None
