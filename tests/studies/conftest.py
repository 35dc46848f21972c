"""A small dataset, and a grid on it that each test bends."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from card_scale.data.manifest import Manifest
from tests.end_to_end.conftest import make_dataset

LENGTH, BATCH = 24, 8
SAMPLES = 40
"""Of an epoch: the subset is 40 samples of 24 tokens."""

Write = Callable[..., Path]


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("study-data"), seed=7)


@pytest.fixture(scope="session")
def train_tokens(dataset) -> int:
    return Manifest.load(dataset).splits["train"].tokens


@pytest.fixture
def write_grid(tmp_path, dataset) -> Write:
    """Return a function that writes a grid (and its base configuration) and returns its path; None removes a key."""

    def write(**changes: Any) -> Path:
        base = {
            "model": {"length": LENGTH, "tie_embeddings": True},
            "data": {"path": str(dataset), "validation_samples": 8, "train_samples": 8},
            "parallel": {"zero": 0},
            "optimizer": {"lr": 3e-3, "warmup_steps": 2},
            "train": {"global_batch": BATCH, "micro_batch": BATCH, "steps": 999},
        }
        config = tmp_path / "base.yaml"
        config.write_text(yaml.safe_dump(base))
        grid = {
            "config": str(config),
            "arms": {"ar": {"objective.name": "ar"}, "card": {"objective.name": "card"}},
            "sizes": {"s": {"model.layers": 1, "model.hidden": 16, "model.heads": 2, "model.ffn": 24}},
            "unique_tokens": [SAMPLES * LENGTH + 1],
            "epochs": [1, 4],
            "seed": [1],
            "hardware": {"flops_per_second": 1e9, "startup_seconds": 10},
            **changes,
        }
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in grid.items() if value is not None}))
        return path

    return write
