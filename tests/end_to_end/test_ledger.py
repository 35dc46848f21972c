"""The sample ledger of real runs: killed, resumed on other layouts, and what the tool says of it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.end_to_end.conftest import write_config
from tests.end_to_end.test_train import train
from tests.layouts.processes import run_ranks

ROOT = Path(__file__).parents[2]
LENGTH = 24
STEPS = 12
OPTIONS = ["run.ledger=true", f"train.steps={STEPS}", "train.eval_every=0"]
OPTIONS += [f"data.unique_tokens={20 * LENGTH + 1}"]  # 20 samples in batches of 8: most epochs end within a batch


def tool(run: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tools/data.py"), "ledger", str(run)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def train_and_die(arguments: list[str], last: int, meeting: Path) -> int:
    """Train; no rank outlives the record of update ``last``, and all make it."""
    from card_scale.training.ledger import Ledger, WritingLedger

    for kind in (Ledger, WritingLedger):
        kind.trained = dying(kind.trained, last, meeting)
    return train(arguments)


def dying(original, last: int, meeting: Path):
    def trained(self, step, samples):
        original(self, step, samples)
        if step == last:
            # By files, since the death of the first to leave a collective can reach the others in it.
            (meeting / f"{last}-{os.environ['RANK']}").touch()
            while len(list(meeting.glob(f"{last}-*"))) < int(os.environ["WORLD_SIZE"]):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

    return trained


def steps_of(run: Path) -> dict[str, list[int]]:
    """The recorded steps by attempt and file."""
    return {
        f"{path.parent.name}/{path.name}": [json.loads(line)["step"] for line in path.read_text().splitlines()[1:]]
        for path in sorted((run / "ledger").glob("*/*"))
    }


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory, dataset):
    """A run on two, one, two and two ranks; SIGKILL ended all attempts but the last."""
    root = tmp_path_factory.mktemp("ledger")
    arguments = [str(write_config(root, dataset)), *OPTIONS]  # saves every second step
    meeting = root / "meeting"
    meeting.mkdir()
    pipeline = [*arguments, "parallel.pipeline=2"]
    for ranks, options, last in ((2, arguments, 5), (1, arguments, 7), (2, pipeline, 9)):
        ended = run_ranks(train_and_die, ranks, options, last, meeting, deadline=90, expect_failure=True)
        assert ended == ["died without a word"] * ranks
    assert run_ranks(train, 2, arguments, deadline=90) == [0, 0]
    return root / "run", arguments


def test_a_run_that_was_killed_and_changed_its_layout_is_exact(killed_run):
    run, _ = killed_run
    assert steps_of(run) == {
        "attempt-0001/dp0000.jsonl": [1, 2, 3, 4, 5],
        "attempt-0001/dp0001.jsonl": [1, 2, 3, 4, 5],
        "attempt-0002/dp0000.jsonl": [5, 6, 7],
        "attempt-0003/dp0000.jsonl": [7, 8, 9],
        "attempt-0004/dp0000.jsonl": [9, 10, 11, 12],
        "attempt-0004/dp0001.jsonl": [9, 10, 11, 12],
    }
    done = tool(run)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "12 steps in 4 attempts; 96 samples, 20 in an epoch, 4 epochs finished\n"
        "0 samples lost, 0 doubled, 0 misplaced; 0 steps of another size than the global batch\n"
        f"{run / 'ledger'}: exact\n"
    )


def test_a_finished_run_begins_no_attempt(killed_run):
    run, arguments = killed_run
    before = steps_of(run)
    assert run_ranks(train, 1, arguments, deadline=60) == [0]
    assert steps_of(run) == before


def test_the_tool_says_what_is_wrong(killed_run):
    run, _ = killed_run
    path = run / "ledger/attempt-0004/dp0001.jsonl"
    content = path.read_text()
    try:
        path.write_text("".join(line for line in content.splitlines(keepends=True) if '"step":11,' not in line))
        lost = tool(run)
        path.write_text(content + "damage\n")
        damaged = tool(run)
        path.write_text(content[:-3])
        behind = tool(run)
    finally:
        path.write_text(content)
    assert lost.returncode == 4
    assert "lost: step 11, epoch 4, sample " in lost.stdout
    assert lost.stderr == f"error: {run / 'ledger'}: not exact: 4 samples lost, 0 doubled, 0 misplaced; " \
        "1 steps of another size than the global batch\n"  # fmt: skip
    assert damaged.returncode == 4
    assert damaged.stderr.startswith(f"error: {path}, line 6: 'damage' is not a ledger's line: a step after 8")
    assert damaged.stderr.count("\n") == 1
    assert behind.returncode == 4, "the checkpoint of step 12 says that it was recorded"


def test_a_run_without_a_ledger(tmp_path, config_file):
    assert run_ranks(train, 1, [str(config_file), "train.steps=1"], deadline=60) == [0]
    assert not (tmp_path / "run/ledger").exists()
    done = tool(tmp_path / "run")
    assert done.returncode == 4
    expected = "no such directory; a run records its samples there where run.ledger is true"
    assert done.stderr == f"error: {tmp_path / 'run/ledger'}: {expected}\n"
