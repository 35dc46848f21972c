"""A small dataset of real shards, and the run configuration on it."""

from pathlib import Path

import pytest
import yaml

from card_scale.corpus.build import BuildSettings, build_dataset
from card_scale.corpus.sources import InputSettings
from card_scale.corpus.tokenizer_training import train_tokenizer
from tests.corpora import make_texts
from tests.end_to_end.runs import KEEP_TWO, train
from tests.layouts.processes import run_ranks


def make_dataset(root: Path, seed: int) -> Path:
    """Build a dataset of 80 synthetic documents; another seed gives other documents and another tokenizer."""
    texts = make_texts(80, seed)
    corpus = root / "corpus"
    corpus.mkdir(parents=True)
    for number, text in enumerate(texts):
        (corpus / f"{number:03d}.txt").write_text(text, encoding="utf-8")
    tokenizer = root / "tokenizer.model"
    tokenizer.write_bytes(train_tokenizer(texts, 400))
    settings = BuildSettings(InputSettings((str(corpus),)), validation_fraction=0.2)
    build_dataset(settings, tokenizer, root / "tokens", workers=1)
    return root / "tokens"


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("dataset"), seed=7)


@pytest.fixture(scope="session")
def other_dataset(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("other"), seed=8)


@pytest.fixture
def config_file(tmp_path, dataset) -> Path:
    return write_config(tmp_path, dataset)


def write_config(directory: Path, dataset: Path) -> Path:
    """Write the configuration of a CARD run of six steps, with evaluations and checkpoints, into a directory.

    The evaluated samples are fewer than a batch: rows that do not count are in it. tests/training has several batches.
    """
    tree = {
        "run": {"dir": str(directory / "run")},
        "model": {"layers": 2, "hidden": 32, "heads": 4, "ffn": 48, "length": 24},
        "objective": {"name": "card"},
        "data": {"path": str(dataset), "validation_samples": 5},
        "parallel": {"engine": "deepspeed", "zero": 3},
        "optimizer": {"lr": 3e-3, "schedule": "cosine", "warmup_steps": 2, "clip": 0.5, "ema": 0.9},
        "train": {"steps": 6, "global_batch": 8, "micro_batch": 2, "log_every": 1, "eval_every": 3, "save_every": 2},
    }
    path = directory / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, dataset) -> Path:
    """Six steps of two ranks, a checkpoint after each, of which two are kept; nothing happens."""
    root = tmp_path_factory.mktemp("undisturbed")
    assert run_ranks(train, 2, [str(write_config(root, dataset)), *KEEP_TWO]) == [0, 0]
    return root / "run"
