"""tools/gpu_check.sh without a GPU: what each stage would start is read, and by estimate fits into one H200."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from card_scale import config as configs
from card_scale.benchmark import arms, latency, memory_check
from card_scale.data.tokenizer import MASK_ID
from card_scale.distributed import parallel_dims
from card_scale.model.vocabulary import Vocabulary
from card_scale.training.memory_fit import Memory

ROOT = Path(__file__).resolve().parents[2]
MEMORY = Memory(139.8 * 2**30, "free", is_host=False)
"""Bytes of an H200."""

INTERPRETER = """#!{python}
import json, os, sys, time
if sys.argv[1] not in ("-c", "-"):
    with open("commands", "a") as file:
        print(json.dumps(sys.argv[1:]), file=file)
    if "FAULTS" in os.environ:
        time.sleep(60 * ("objective.name=ar" in sys.argv))
        sys.exit(3 if "train.steps=20" in sys.argv else 0)
"""


def run(directory: Path, *stages: str, **variables: str) -> tuple[subprocess.CompletedProcess, list[list[str]]]:
    """Run stages with an interpreter that only writes down what it should run; return that too, command by command.

    With FAULTS parity fails, and the first training of the stage decode-train takes a minute.
    """
    interpreter = directory / "python"
    interpreter.write_text(INTERPRETER.format(python=sys.executable))
    interpreter.chmod(0o755)
    for needed in (
        "data/quickstart/tokens",
        *(f"runs/gpu_check/{arm}/checkpoints/iter_0000500" for arm in ("ar", "spans")),
    ):
        (directory / needed).mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [ROOT / "tools/gpu_check.sh", *stages],
        cwd=directory,
        env=os.environ | {"PYTHON": str(interpreter), "RESULTS": str(directory / "results")} | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    commands = (directory / "commands").read_text().splitlines() if (directory / "commands").exists() else []
    return done, [json.loads(line) for line in commands]


@pytest.fixture(scope="module")
def commands(tmp_path_factory) -> list[list[str]]:
    """What all stages that are run by default would start."""
    done, found = run(tmp_path_factory.mktemp("all"))
    assert done.stdout.count("== ") == 21, done.stdout
    return found


def of_program(commands: list[list[str]], program: str) -> list[list[str]]:
    found = [command[1:] for command in commands if command[0] == program]
    assert found, program
    return found


def parsed(monkeypatch, program: str, words: list[str]):
    monkeypatch.setattr(sys, "argv", [program, *words])
    return runpy.run_path(str(ROOT / program))["parse"]()


def test_every_step_that_is_timed_fits(commands, monkeypatch):
    for words in of_program(commands, "tools/bench_step_latency.py"):
        options, overrides = parsed(monkeypatch, "tools/bench_step_latency.py", words)
        models = [(Path(path).stem, configs.load(ROOT / path, overrides)) for path in options.config]
        rows = Vocabulary(options.vocabulary, MASK_ID).padded
        for case in latency.cases(models, options.lengths, options.tokens, 1):
            layout = parallel_dims.plan(case.config, 1)
            for arm in arms.parse(options.arms, options.blocks):
                memory_check.check_fits(arm, case.config, layout, rows, MEMORY)


def test_every_other_command_is_valid(commands, monkeypatch):
    for words in of_program(commands, "-m"):
        assert words[0] == "card_scale.train"
        configs.load(ROOT / words[1], words[2:])
    for program in ("tools/largest_model.py", "tools/decode_sweep.py"):
        for words in of_program(commands, program):
            options = parsed(monkeypatch, program, words)
            if program == "tools/largest_model.py":
                configs.load(ROOT / options.config, options.overrides)


def test_a_stage_that_fails_or_takes_too_long_does_not_cost_the_others(tmp_path):
    done, found = run(tmp_path, "parity", "decode-train", "recompute", STAGE_SECONDS="5", FAULTS="1")
    assert done.returncode == 124  # that of the last that failed
    assert len(of_program(found, "-m")) == 2  # neither stage has gone on behind its first training
    assert len(of_program(found, "tools/bench_step_latency.py")) == 3


def test_a_stage_that_does_not_exist_is_refused(tmp_path):
    done, found = run(tmp_path, "fast")
    assert (done.returncode, found) == (2, [])
    assert "error: unknown stage fast" in done.stderr
