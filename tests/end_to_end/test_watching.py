"""What a user watches: the console, TensorBoard and stop requests while an evaluation lasts."""

import contextlib
import importlib.util
import io
import json
import os
import re
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

from card_scale.errors import ExitCode
from tests.end_to_end.conftest import write_config
from tests.end_to_end.runs import train
from tests.layouts.processes import run_ranks


def train_and_listen(arguments: list[str]) -> tuple[int, str, str]:
    """Train; return exit code, standard output and standard error."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as error:
        code = train(arguments)
    return code, out.getvalue(), error.getvalue()


def records(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_dry_run_shows_no_warnings_of_libraries(config_file):
    """In a process that has imported nothing yet: they are given at import."""
    command = [sys.executable, "-m", "card_scale.train", str(config_file), "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stderr == ""


MDLM = ["objective.name=mdlm", "train.steps=4", "train.eval_every=2", "train.save_every=0", "train.log_every=2"]


@pytest.fixture(scope="module")
def bound_run(tmp_path_factory, dataset):
    """Return (its directory, what it printed): MDLM, whose likelihood is a bound."""
    root = tmp_path_factory.mktemp("bound")
    arguments = [str(write_config(root, dataset)), *MDLM, "data.validation_samples=10000"]
    ((code, printed, warned),) = run_ranks(train_and_listen, 1, arguments, deadline=90)
    assert (code, warned) == (0, ""), "no library warns of what is nobody's business"
    return root / "run", printed


def test_the_console_marks_bounds_and_says_the_interval(bound_run):
    run, printed = bound_run
    lines = [line for line in printed.splitlines() if line.startswith("step ") and "evaluating" not in line]
    assert [line.split(" | ")[0] for line in lines] == ["step 0/4", "step 2/4", "step 2/4", "step 4/4", "step 4/4"]
    found = {record["step"]: record for record in records(run) if "loss" in record}
    for line, step in ((lines[1], 2), (lines[3], 4)):
        pattern = (
            rf"step {step}/4 \| loss <= ([\d.]+) \(bound\) \| [\d,]+ tokens/s \| epoch [\d.]+ \| grad norm [\d.]+ "
        )
        shown = re.match(pattern + r"\| lr \S+ \| ETA \d+ s$", line)
        assert shown, line
        assert float(shown[1]) == pytest.approx(found[step]["loss_interval"], abs=5e-4)
        assert found[step]["loss_interval"] != found[step]["loss"]
    for line in (lines[0], lines[2], lines[4]):
        assert re.search(r"validation loss <= [\d.]+ ± [\d.]+ \(bound\) \| perplexity <= \S+ \(bound\)", line), line
    assert "lm loss" not in printed
    assert "PPL" not in printed


def test_fewer_validation_samples_than_asked_for_are_told_of(bound_run):
    assert re.search(r"warning: data\.validation_samples is 10,000, but there are only \d+", bound_run[1])


def test_tensorboard_sees_one_run_whose_losses_are_bounds(bound_run):
    run, _ = bound_run
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(run)).Reload()
    assert list(multiplexer.Runs()) == ["tensorboard"]
    events = multiplexer.GetAccumulator("tensorboard")
    losses = {tag for tag in events.Tags()["scalars"] if tag.startswith("lm loss")}
    assert all("bound" in tag or tag.endswith("standard error") for tag in losses), losses
    drawn = [(event.step, event.value) for event in events.Scalars("lm loss bound")]
    expected = [(record["step"], record["loss_interval"]) for record in records(run) if "loss" in record]
    assert drawn == [(step, pytest.approx(loss)) for step, loss in expected]


def test_the_loss_of_an_interval_is_the_mean_of_what_logging_each_update_shows(bound_run, tmp_path):
    """MDLM's normaliser is the same for each batch: a plain mean."""
    run, _ = bound_run
    arguments = [str(run.parent / "config.yaml"), *MDLM, "train.log_every=1", f"run.dir={tmp_path / 'each'}"]
    assert run_ranks(train_and_listen, 1, arguments, deadline=90)[0][0] == 0
    each = {record["step"]: record["loss_interval"] for record in records(tmp_path / "each") if "loss" in record}
    together = {record["step"]: record["loss_interval"] for record in records(run) if "loss" in record}
    assert list(each) == [1, 2, 3, 4]
    means = {2: (each[1] + each[2]) / 2, 4: (each[3] + each[4]) / 2}
    assert together == pytest.approx(means, rel=1e-6)
    assert abs(together[4] - each[4]) > 1e-4


def train_and_ask_while_evaluating(arguments: list[str]) -> int:
    """The last rank is asked to stop once the first batch of the first evaluation is done."""
    from card_scale.training.stop import StopRequest

    asked = iter([None])

    def poll(_self):
        return next(asked, "a test")

    if os.environ["RANK"] == "3":
        StopRequest.poll = poll
    return train(arguments)


@pytest.mark.parametrize("layout", [["parallel.pipeline=2"], ["parallel.tensor=2", "parallel.engine=fsdp2"]])
def test_a_stop_ends_the_first_evaluation_on_all_ranks(tmp_path, config_file, layout):
    run = tmp_path / "run"
    arguments = [str(config_file), *layout]
    assert run_ranks(train_and_ask_while_evaluating, 4, arguments, deadline=90) == [ExitCode.STOPPED] * 4
    assert json.loads((run / "exit.json").read_text())["reason"].startswith("stopped after 0 of 6 steps on a test")
    assert records(run) == [], "half an evaluation is none"


STAND_IN = """
import json, os

class Run:
    def __init__(self, **told): self.tell("init", told | {"rank": os.environ["RANK"]})
    def tell(self, what, told):
        with open(__file__ + ".told", "a") as file: print(json.dumps([what, told], default=str), file=file)
    def define_metric(self, pattern, step_metric): pass
    def log(self, values): self.tell("log", values)
    def finish(self, exit_code): self.tell("finish", exit_code)

init, Settings = Run, dict
"""


def train_with_stand_in(arguments: list[str], folder: str) -> int:
    sys.path.insert(0, folder)
    return train(arguments)


def test_one_rank_sends_to_wandb_and_a_resumed_run_is_the_same_there(tmp_path, config_file):
    (tmp_path / "wandb.py").write_text(STAND_IN)
    arguments = [str(config_file), "run.wandb=mine", "optimizer.schedule=constant", "train.log_every=2"]
    for steps in (2, 4):
        command = [*arguments, f"train.steps={steps}"]
        assert run_ranks(train_with_stand_in, 2, command, str(tmp_path), deadline=90) == [0, 0]
    told = [json.loads(line) for line in (tmp_path / "wandb.py.told").read_text().splitlines()]
    assert [what for what, _ in told] == ["init", *["log"] * 3, "finish", "init", *["log"] * 3, "finish"]
    begun = [values for what, values in told if what == "init"]
    assert [one["rank"] for one in begun] == ["0", "0"]
    assert begun[0]["id"] == begun[1]["id"]
    assert begun[1]["config"]["train.steps"] == 4
    assert [values for what, values in told if what == "finish"] == [0, 0]
    logged = [(values["step"], values["lm loss"]) for what, values in told if what == "log" and "lm loss" in values]
    lines = [record for record in records(tmp_path / "run") if "loss" in record]
    assert logged == [(record["step"], record["loss_interval"]) for record in lines]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_wandb_where_it_is_missing_is_refused_before_the_start(tmp_path, config_file):
    ((code, _, error),) = run_ranks(train_and_listen, 1, [str(config_file), "run.wandb=mine"], deadline=60)
    assert code == ExitCode.CONFIGURATION
    assert "run.wandb is 'mine', but wandb is not installed: pip install wandb" in error
    assert not (tmp_path / "run/metrics.jsonl").exists()
