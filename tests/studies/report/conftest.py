"""A study's result table with known losses, as tools/study.py writes it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from card_scale.studies import table_files as tables

UNIQUE = 1000


def row(arm: str, epochs: int, loss: float, **changes: Any) -> dict[str, Any]:
    """A finished run of ``epochs`` over 1000 tokens."""
    setting = {"seed": 1, "lr": 1e-3, "weight_decay": 0.1, "dropout": 0.0}
    setting |= {name: changes[name] for name in setting if name in changes}
    tag = "-".join(map(str, (arm, changes.get("size", "s"), epochs, *setting.values())))
    tokens = UNIQUE * epochs
    parameters = changes.get("params_N", 5000)
    return {
        "run": tag,
        "status": "done",
        "exit_code": 0,
        "reason": "done",
        "objective": arm,
        "size": "s",
        "params_N": parameters,
        "tokens_D": tokens,
        "unique_tokens_U": UNIQUE,
        "epochs": float(epochs),
        "flops": 6.0 * parameters * tokens,
        "bound": False,
        "val_loss": loss,
        "val_loss_standard_error": None,
        "best_val_loss": loss - 0.125,
        "best_epoch": epochs / 2,
        "gap": 0.01 * epochs,
        "vocabulary_size": 512,
        "tokenizer_hash": "t",
        "validation_hash": "v",
        "optimizer.clip": 1.0,
        **setting,
        **changes,
    }


def bound(epochs: int, loss: float, **changes: Any) -> dict[str, Any]:
    """A finished run of masked diffusion."""
    return row("mdlm", epochs, loss, bound=True, val_loss_standard_error=0.02, **changes)


Write = Callable[[list[dict[str, Any]]], Path]


@pytest.fixture
def write_table(tmp_path) -> Write:
    """Return a function that writes rows as a study does, with losses by pass beside them."""

    def write(rows: list[dict[str, Any]]) -> Path:
        passes = [
            {
                "run": one["run"],
                "objective": one["objective"],
                "size": one["size"],
                "pass": number,
                "loss": 5.0 - number,
            }
            for one in rows
            if one["status"] == "done"
            for number in (1, 2)
        ]
        if passes:
            tables.write(passes, tmp_path / "losses_by_pass")
        return tables.write(rows, tmp_path / "results")[1]

    return write


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """Two exact arms, one with a swept weight decay and two seeds, a bound, and a failed run."""
    found = [row("ar", e, loss) for e, loss in ((1, 5.0), (4, 4.0), (16, 4.5))]
    found += [row("card", e, loss) for e, loss in ((1, 5.2), (4, 4.1), (16, 3.8))]
    found += [row("card", 16, 3.9, seed=2), row("card", 16, 3.7, weight_decay=0.4)]
    found += [bound(e, loss) for e, loss in ((1, 6.0), (4, 5.0), (16, 3.6))]
    failed = row("ar", 64, 0.0) | {"status": "failed", "exit_code": 6, "reason": "the loss is <nan>", "val_loss": None}
    return [*found, failed | {"best_val_loss": None, "best_epoch": None, "gap": None}]
