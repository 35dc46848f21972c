"""What a few timed steps are taken for, and what is no measurement."""

import json
import sys

import pytest

from card_scale.errors import ConfigurationError
from card_scale.studies import measure
from card_scale.studies.grid import load
from card_scale.studies.spec import specs

RUN = """
import json, pathlib, sys
run, seconds, code = pathlib.Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
run.mkdir(parents=True)
lines = [{"step": step, "loss": 1.0, "step_seconds": seconds * (9 if step < 5 else 1)} for step in range(1, 25)]
(run / "metrics.jsonl").write_text("".join(json.dumps(line) + chr(10) for line in lines[:None if code == 0 else 3]))
(run / "exit.json").write_text(json.dumps({"code": code, "reason": "the loss is nan"}))
sys.exit(code)
"""


@pytest.fixture
def timed(monkeypatch, write_grid, tmp_path):
    """Return a function that measures a study while its steps take so long and end so; and the directories run in."""
    runs = []

    def time_it(seconds: float, code: int = 0, **changes):
        def command(task):
            runs.append(task.directory)
            return [sys.executable, "-c", RUN, str(task.directory), str(seconds), str(code)]

        monkeypatch.setattr(measure, "command_line", command)
        arms = {"arms": {"ar": {"objective.name": "ar"}}}
        return measure.measure(specs(load(write_grid(**arms | changes)), tmp_path / "study"), tmp_path / "study", {})

    return time_it, runs


def test_the_median_step_counts_and_is_kept(timed, tmp_path):
    time_it, runs = timed
    (first,) = time_it(0.5).values()
    (again,) = time_it(0.25).values()  # not run again
    assert (again, len(runs)) == (first, 1)
    assert measure.read(tmp_path / "study") == {("ar", "s"): first}
    wider = {"s": {"model.layers": 1, "model.hidden": 32, "model.heads": 2, "model.ffn": 24}}
    (changed,) = time_it(0.25, sizes=wider).values()  # another model under the same names
    assert len(runs) == 2
    assert changed > 2 * first
    time_it(0.25, sizes=wider, overrides={"train.micro_batch": 1})  # another speed, though the same run
    assert len(runs) == 3


def test_a_timing_that_failed_is_made_again(timed):
    time_it, runs = timed
    with pytest.raises(ConfigurationError, match=r"timing ar-s-.* failed: the loss is nan"):
        time_it(0.5, code=6)
    (found,) = time_it(0.5).values()
    assert (len(runs), runs[0] == runs[1]) == (2, True)
    assert found > 0
    assert json.loads((runs[0] / "exit.json").read_text())["code"] == 0
