"""Types of the fitting tools' arguments: a fit takes minutes, so what cannot end well is refused before it."""

import argparse
import importlib.util
import math
from pathlib import Path

FIGURE_ENDINGS = (".pdf", ".png", ".svg")


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
    """Type of a file to write, in a directory that exists."""
    path = Path(value)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{value} is a directory, not a file")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{value}: there is no directory {path.parent}")
    return path


def figure_file(value: str) -> Path:
    """Type of a figure to write."""
    if Path(value).suffix not in FIGURE_ENDINGS:
        raise argparse.ArgumentTypeError(f"{value} does not end in {', '.join(FIGURE_ENDINGS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise argparse.ArgumentTypeError("figures need matplotlib: pip install -c constraints.txt -e .[plots]")
    return output_file(value)
