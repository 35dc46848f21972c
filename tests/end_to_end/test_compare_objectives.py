"""tools/compare_objectives.py: two objectives trained, read and drawn."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from card_scale.benchmark import comparison
from card_scale.errors import DataError

ROOT = Path(__file__).resolve().parents[2]


def test_two_objectives_are_trained_read_and_drawn(tmp_path, config_file):
    command = [sys.executable, str(ROOT / "tools/compare_objectives.py"), str(config_file), "model.layers=4"]
    command += ["--arms", "ar", "two=armd"]
    command += ["--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "out"), "--of", "two:objective.block=4"]
    command += ["--of", "two:objective.permuted=3", "--seeds", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    ar, two = result["curves"]
    assert [(curve["arm"], curve["seed"], curve["bound"]) for curve in (ar, two)] == [
        ("ar", 7, False),
        ("two", 7, False),
    ]
    assert (ar["others"], list(two["others"])) == ({}, ["armd/any_order_nll", "armd/permuted_nll"])
    assert "armd/permuted_nll, at the end of each run, not to be compared" in done.stdout
    tokens = [curve["points"][-1]["tokens"] for curve in (ar, two)]
    assert tokens[0] == tokens[1] > 0
    flops = [curve["points"][-1]["flops"] for curve in (ar, two)]
    assert 1.1 < flops[1] / flops[0] < 1.5
    assert (tmp_path / "runs/two-s7/config.yaml").exists()
    assert (tmp_path / "out.png").stat().st_size > 10_000
    assert "objective.block=4" in done.stdout
    # Again, with one arm of the two.
    command.remove("ar")
    again = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert "already done" in again.stdout


def test_a_run_without_evaluation_is_refused(tmp_path, config_file):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_bytes(config_file.read_bytes())
    (run / "metrics.jsonl").write_text(json.dumps({"step": 0, "validation_nll": 9.0}) + "\n")
    with pytest.raises(DataError, match="holds no evaluation after training"):
        comparison.read_curve("ar", run)
