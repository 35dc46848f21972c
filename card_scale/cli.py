"""What every command-line tool shares: one line for an expected failure, and its exit code."""

import os
import signal
import sys
from collections.abc import Callable

from card_scale.errors import CardScaleError, ExitCode, StopRequested


def _interrupt(_signal_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def run_tool(main: Callable[[], None]) -> int:
    """Run a tool's ``main`` and turn its way of ending into an exit code (see :class:`card_scale.errors.ExitCode`).

    Ctrl-C and SIGTERM, which a scheduler sends, end alike. An error raised on purpose, or by the operating system
    about a file, is one line on stderr; anything else is a defect and keeps its traceback.

    Returns:
        The exit code for ``sys.exit``.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        main()
        sys.stdout.flush()  # a reader that has gone is noticed here, not by the interpreter's end
    except StopRequested as stop:
        print(f"stopped: {stop}", file=sys.stderr)
        return stop.exit_code
    except CardScaleError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped: interrupted", file=sys.stderr)
        return ExitCode.STOPPED
    except BrokenPipeError:
        # Whoever reads the output has seen enough. What is left of it must not complain at the end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.DONE
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return ExitCode.DATA
    return ExitCode.DONE
