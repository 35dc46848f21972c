"""The search for the largest model, and one of its trials."""

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from card_scale.benchmark.largest_model import last_that, most_by_estimate, with_layers
from card_scale.config import load
from card_scale.errors import ConfigurationError
from card_scale.training.memory_fit import Memory, needed_bytes

TOOL = Path(__file__).resolve().parents[2] / "tools/largest_model.py"
CONFIG = ["launchers/configs/quickstart.yaml", "parallel.pipeline=1", "parallel.deepspeed=null", "parallel.zero=0"]


@given(st.integers(0, 300), st.integers(0, 300))
def test_the_search_ends_at_the_last_that_fits(last, first):
    asked = []

    def fits(number):
        asked.append(number)
        return number <= last

    assert last_that(fits, first) == last
    assert len(asked) == len(set(asked))  # each trial is a minute
    assert min(asked) >= 1
    if last and abs(last - first) * 16 <= first:  # as the estimate is expected to be
        assert len(asked) <= 9


def test_the_estimate_decides():
    config = load(CONFIG[0], CONFIG[1:])
    memory = Memory(2**30, "stated", is_host=False)
    layers = most_by_estimate(config, 4096, memory)
    fits = [
        needed_bytes(with_layers(config, number), 1, 4096, memory) <= memory.bytes for number in (layers, layers + 1)
    ]
    assert fits == [True, False]
    assert most_by_estimate(config, 4096, memory._replace(bytes=1.0)) == 0


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "ignore", TOOL, *CONFIG, "--vocabulary", "300", *arguments]
    return subprocess.run(command, cwd=TOOL.parents[1], capture_output=True, text=True, timeout=120, check=False)


def test_a_trial_says_its_peak_and_without_a_gpu_nothing_is_searched():
    done = run("train.micro_batch=2", "--trial", "2")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["peak_gib"] > 0
    done = run()
    assert done.returncode == 3
    assert "error: torch sees no GPU" in done.stderr
    done = run("parallel.tensor=2", "--trial", "2")
    assert done.returncode == 3, done.stderr


def test_a_trial_without_memory_is_told_from_one_that_failed(monkeypatch):
    spec = importlib.util.spec_from_file_location("largest_model", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    options = argparse.Namespace(config="a.yaml", overrides=[], vocabulary=300)

    def ends(code: int, said: str, printed: str = "") -> None:
        monkeypatch.setattr(
            tool.subprocess, "run", lambda *_, **__: argparse.Namespace(returncode=code, stderr=said, stdout=printed)
        )

    ends(0, "", 'building\n{"peak_gib": 61.5}\n')
    assert tool.peak_of_a_trial(options, 3) == 61.5
    ends(3, "error: CUDA out of memory. Tried to allocate 2 GiB.\n[rank0] destroy_process_group() was not called\n")
    assert tool.peak_of_a_trial(options, 3) is None
    ends(1, "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)\n")
    assert tool.peak_of_a_trial(options, 3) is None
    for code, said in ((3, "error: model.heads is 5\n"), (1, "RuntimeError: no kernel\n"), (-9, "")):
        ends(code, said)
        with pytest.raises(ConfigurationError, match=f"3 layers ended with code {code}"):
            tool.peak_of_a_trial(options, 3)
