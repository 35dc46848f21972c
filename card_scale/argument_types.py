"""Types of the tools' arguments: what cannot end well is refused before a tool begins. Imports nothing heavy."""

import argparse
import importlib.util
import math
import os
from pathlib import Path

FIGURE_ENDINGS = (".pdf", ".png", ".svg")


def not_negative(value: str) -> int:
    """Type of an integer argument of at least 0."""
    number = int(value)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return number


def positive(value: str) -> int:
    """Type of an integer argument of at least 1."""
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return number


def fraction(value: str) -> float:
    """Type of an argument in [0, 1)."""
    number = float(value)
    if not 0.0 <= number < 1.0:
        raise argparse.ArgumentTypeError(f"{value} is not at least 0 and below 1")
    return number


def positive_share(value: str) -> float:
    """Type of an argument in (0, 1]."""
    number = float(value)
    if not 0.0 < number <= 1.0:
        raise argparse.ArgumentTypeError(f"{value} is not above 0 and at most 1")
    return number


def positive_number(value: str) -> float:
    """Type of a finite argument above 0."""
    number = float(value)
    if not 0.0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{value} is not a finite number above 0")
    return number


def not_negative_number(value: str) -> float:
    """Type of a finite argument of at least 0."""
    number = float(value)
    if not 0.0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{value} is not a finite number of at least 0")
    return number


def output_file(value: str) -> Path:
    """Type of a file to write, in a directory that exists; what a link points to, so that the link stays."""
    path = Path(value).resolve() if os.path.islink(value) else Path(value)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{value} is a directory, not a file")
    if path.exists() and not path.is_file():
        raise argparse.ArgumentTypeError(
            f"{value} is a device or a pipe; valid is a file, which is replaced when whole"
        )
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{value}: there is no directory {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"{value}: the directory {path.parent} must not be written in")
    return path


def figure_file(value: str) -> Path:
    """Type of a figure to write."""
    if Path(value).suffix not in FIGURE_ENDINGS:
        raise argparse.ArgumentTypeError(f"{value} does not end in {', '.join(FIGURE_ENDINGS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise argparse.ArgumentTypeError("figures need matplotlib: pip install -c constraints.txt -e .[plots]")
    return output_file(value)
