"""The ways a command can end: exit codes, and the error classes that carry them.

An error raised on purpose is a :class:`CardScaleError`. Its message names the file or key, the value found and what
would be valid; the command prints it without a traceback and exits with its code.
"""

import enum


class ExitCode(enum.IntEnum):
    """Exit code of every command, also written to ``exit.json`` because torchrun returns 1 for any worker's code."""

    DONE = 0
    COMMAND_LINE = 2
    CONFIGURATION = 3
    DATA = 4
    CHECKPOINT = 5
    NUMERIC = 6
    HANG = 7
    PEER_LOST = 8
    STOPPED = 75  # EX_TEMPFAIL: stopped cleanly on request, start the same command again


class CardScaleError(Exception):
    """Base of the errors that end a command with a message instead of a traceback."""

    exit_code: ExitCode


class CommandLineError(CardScaleError):
    """An argument that the command does not have."""

    exit_code = ExitCode.COMMAND_LINE


class ConfigurationError(CardScaleError):
    """A configuration that cannot be run: unknown key, wrong type, contradiction, impossible combination."""

    exit_code = ExitCode.CONFIGURATION


class OwnRankError(ConfigurationError):
    """A configuration that one rank may meet an obstacle to and another not: the rank says it itself."""


class OutOfMemory(OwnRankError):
    """A configuration that the device's memory does not hold."""


class ForeignRunError(ConfigurationError):
    """A run directory that belongs to another run: nothing in it is this command's to write."""


class DataError(CardScaleError):
    """A corpus, tokenizer or shard that is missing, damaged or does not belong to the others."""

    exit_code = ExitCode.DATA


class CheckpointError(CardScaleError):
    """A checkpoint that is incomplete, damaged or of another model."""

    exit_code = ExitCode.CHECKPOINT


class NumericError(CardScaleError):
    """A loss or gradient that is not finite."""

    exit_code = ExitCode.NUMERIC


class StopRequested(CardScaleError):
    """The user or the scheduler asked for a stop; what was done is saved."""

    exit_code = ExitCode.STOPPED
