"""The cost of a checkpoint: what is compared with what, and that the tool measures it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from card_scale.benchmark.checkpoint_cost import Round, ratios

ROOT = Path(__file__).resolve().parents[2]


def test_ratios_are_within_a_round():
    rounds = [
        Round(plain_write=1.0, save=2.0, plain_read=1.0, load=4.0, steps=5.0, copy=0.1, steps_beside=5.5, wait=0.4),
        # A machine half as fast.
        Round(plain_write=2.0, save=4.0, plain_read=2.0, load=8.0, steps=10.0, copy=0.2, steps_beside=11.0, wait=0.8),
    ]
    assert ratios(rounds, steps=5) == pytest.approx(
        {
            "write bandwidth, of plain files'": 0.5,
            "load bandwidth, of plain files'": 0.25,
            "save, in steps": 2.0,
            "copy of an asynchronous save, in steps": 0.1,
            "asynchronous save in all, in steps": 1.0,
        }
    )


def test_the_tool_measures_and_leaves_nothing(tmp_path):
    record = tmp_path / "cost.json"
    small = ["model.layers=1", "model.hidden=16", "model.heads=2", "model.ffn=16", "model.length=16"]
    layout = ["parallel.pipeline=1", "parallel.deepspeed=null", "train.global_batch=2", "train.micro_batch=2"]
    sizes = ["--vocabulary", "64", "--rounds", "1", "--steps", "1", "--directory", str(tmp_path)]
    config = "launchers/configs/quickstart.yaml"
    done = subprocess.run(
        [sys.executable, "tools/bench_checkpoint.py", config, *small, *layout, *sizes, "--json", str(record)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "write bandwidth, of plain files':" in done.stdout
    found = json.loads(record.read_text())
    assert all(value > 0 for name, value in found["ratios"].items() if "in all" not in name)
    assert found["bytes"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["cost.json"]
