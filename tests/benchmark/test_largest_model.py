"""The search for the largest model, and one of its trials."""

import json
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from card_scale.benchmark.largest_model import last_that, most_by_estimate, with_layers
from card_scale.config import load
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
