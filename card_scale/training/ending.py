"""How the main command ends: from an error to its exit code, what is said and what is recorded."""

import contextlib
import os
import platform
import sys

from card_scale.config import Config
from card_scale.distributed.launched_as import is_first_of_node
from card_scale.errors import CardScaleError, ExitCode, NumericError
from card_scale.training.exit_record import note_for_launcher

DEFECT = 1
"""Exit code of an error that nobody meant, which keeps its traceback; Python's own."""


def ending(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the reason that an error ends the command with; DEFECT for one nobody meant."""
    if isinstance(error, CardScaleError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.STOPPED, "interrupted"
    code = lost_peer_or_hang(error) if isinstance(error, RuntimeError) else None
    return (DEFECT, f"{type(error).__name__}: {error}") if code is None else (code, str(error))


def what_is_saved(config: Config | None, error: BaseException) -> str:
    """Return what to add to the reason of an end in the midst of training: what a next start goes on from."""
    if config is None or not isinstance(error, (NumericError, KeyboardInterrupt)):
        return ""
    from card_scale.checkpoint.directory import pointed_step
    from card_scale.training.run_directory import RunDirectory

    step = pointed_step(RunDirectory(config.run.dir).checkpoints)
    return "; nothing has been saved" if step is None else f"; the checkpoint after {step} steps is intact"


def lost_peer_or_hang(error: RuntimeError) -> ExitCode | None:
    """Return the exit code for an error of a collective: gloo and NCCL raise RuntimeError with these words."""
    text = str(error)
    if "timed out" in text.lower() or "timeout" in text.lower():
        return ExitCode.HANG
    if any(words in text for words in ("Connection closed by peer", "Connection reset by peer", "Broken pipe")):
        return ExitCode.PEER_LOST
    return None


def end_hanging(config: Config, reason: str) -> None:
    """End the process, whatever its other threads do, with the code of a hang."""
    try:
        finish(config, ExitCode.HANG, reason, of_all_ranks=False)
    finally:
        os._exit(ExitCode.HANG)


def finish(
    config: Config | None, code: ExitCode | int, reason: str, *, of_all_ranks: bool, earlier: bytes | None = None
) -> int:
    """Say and record how the command ended; return the exit code.

    Where every rank ends so, one says it; of an error, one of each machine, which may lack what the others have.
    ``earlier``: the record of another command that was there when this one began.
    """
    from card_scale.training.run_directory import RunDirectory

    named = os.environ.get("RANK", "0")
    rank = int(named) if named.isdecimal() else 0
    is_error = code not in (ExitCode.DONE, ExitCode.STOPPED)
    if rank == 0 or not of_all_ranks or (is_error and is_first_of_node(os.environ)):
        place = f"rank {rank} on {platform.node()}: " if of_all_ranks and rank > 0 else ""
        prefix = "error: " if is_error else ""
        print(f"{prefix}{place}{reason}", file=sys.stdout if code == ExitCode.DONE else sys.stderr, flush=True)
    with contextlib.suppress(OSError):  # the launcher's directory is gone, or full: it then knows less
        note_for_launcher(os.environ, code, reason)
    if config is not None and (rank == 0 or is_error):
        try:
            RunDirectory(config.run.dir).write_exit(code, reason, earlier)
        except OSError as error:
            print(f"warning: exit.json cannot be written: {error}", file=sys.stderr, flush=True)
    return int(code)
