"""The public table of 308 runs with repeated data, see data/README.md."""

import csv
from pathlib import Path

import numpy as np

from card_scale.laws.published import CONSTANTS, MUENNIGHOFF_REPETITION
from card_scale.laws.runs import Runs

PATH = Path(__file__).parent / "data" / "datablations_runs.csv"
BASE = dict(CONSTANTS["muennighoff-c4"])
PUBLISHED = {**BASE, **MUENNIGHOFF_REPETITION}


def runs(**where: str) -> Runs:
    """Read rows whose cells are as given, without the package's own reader."""
    with PATH.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if all(row[name] == value for name, value in where.items())]
    columns = ("params_N", "tokens_D", "unique_tokens_U", "val_loss")
    return Runs(*(np.array([float(row[name]) for row in rows]) for name in columns))


def published_182() -> Runs:
    """Return the runs of the published fit."""
    return runs(in_published_182_fit="1")
