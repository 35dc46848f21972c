"""The local runner on short commands: order, failures, crashes, stops, locks. No training."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from card_scale.config import Config
from card_scale.errors import ConfigurationError, StopRequested
from card_scale.studies import runner, task_process
from card_scale.studies.plan import Cost
from card_scale.studies.runner import LocalRunner, Machine, at_once_here, needed
from card_scale.studies.state import Lock, Outcome, StudyDirectory
from card_scale.studies.tasks import Task
from card_scale.training.stop import StopRequest

EXIT = """
import json, pathlib, sys
directory, code, reason = sys.argv[1:]
pathlib.Path(directory).mkdir(parents=True, exist_ok=True)
pathlib.Path(directory, "exit.json").write_text(json.dumps({"code": int(code), "reason": reason}))
sys.exit(int(code))
"""
STOPS = """
import json, pathlib, signal, sys, time
directory = pathlib.Path(sys.argv[1])
directory.mkdir(parents=True, exist_ok=True)
def stop(*_):
    (directory / "exit.json").write_text(json.dumps({"code": 75, "reason": "saved"}))
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
(directory / "ready").touch()
time.sleep(60)
"""
MACHINE = Machine(cores=2, memory_bytes=2**40, gpus=0)


def task(directory: Path, name: str, *command: str, after: str | None = None, is_leg: bool = False) -> Task:
    """A task that runs ``command`` (of Python) instead of training."""
    return Task(
        id=name,
        command=command,
        directory=directory / "runs" / name,
        config=Config(),
        ranks=1,
        steps=1,
        new_steps=1,
        new_evaluations=1,
        is_leg=is_leg,
        after=after,
    )


def ends(directory: Path, name: str, code: int = 0, **keys) -> Task:
    return task(directory, name, "-c", EXIT, str(directory / "runs" / name), str(code), f"{name} says so", **keys)


@pytest.fixture(autouse=True)
def commands(monkeypatch):
    monkeypatch.setattr(runner, "command_line", lambda one: [sys.executable, *one.command])


@pytest.fixture
def study(tmp_path) -> StudyDirectory:
    return StudyDirectory(tmp_path)


def make(study, tasks, at_once=2, machine=MACHINE, stop=None) -> tuple[dict[str, Outcome], list[str]]:
    said: list[str] = []
    seconds = {one.id: float(len(tasks) - place) for place, one in enumerate(tasks)}
    local = LocalRunner(study, tasks, at_once=at_once, machine=machine, seconds=seconds, say=said.append)
    with StopRequest() as request:
        return local.run(stop or request), said


def test_a_failure_is_put_on_record_and_ends_nothing_else(study, tmp_path):
    tasks = [ends(tmp_path, "bad", 6), ends(tmp_path, "good"), task(tmp_path, "silent", "-c", "raise SystemExit(1)")]
    killed = task(tmp_path, "killed", "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    outcomes, said = make(study, [*tasks, killed])
    assert {name: outcome.code for name, outcome in outcomes.items()} == {
        "bad": 6,
        "good": 0,
        "silent": 1,
        "killed": -9,
    }
    assert outcomes["bad"].reason == "bad says so"
    assert outcomes["silent"].reason == "ended with code 1 and left no record; see its log"
    assert outcomes["killed"].reason == "killed by SIGKILL"
    assert [study.status(one) for one in tasks] == ["failed", "done", "failed"]
    assert any("FAILED 6" in line and "bad says so" in line for line in said)


def test_what_is_done_is_not_made_again_and_failures_only_on_request(study, tmp_path):
    tasks = [ends(tmp_path, "bad", 6), ends(tmp_path, "good"), ends(tmp_path, "other")]
    make(study, tasks[:2])
    status = {one.id: study.status(one) for one in tasks}
    assert [one.id for one in needed(tasks, status, retry_failed=False)] == ["other"]
    assert [one.id for one in needed(tasks, status, retry_failed=True)] == ["bad", "other"]
    make(study, needed(tasks, status, retry_failed=True))
    assert study.outcome(tasks[0]).attempts == 2
    assert study.outcome(tasks[1]).attempts == 1


def test_a_record_of_an_earlier_attempt_does_not_count(study, tmp_path):
    make(study, [ends(tmp_path, "one", 6)])
    crashes = task(tmp_path, "one", "-c", "import os; os._exit(3)")
    outcomes, _ = make(study, [crashes])
    assert outcomes["one"].code == 3
    assert "left no record" in outcomes["one"].reason


def test_legs_come_before_what_waits_for_them(study, tmp_path):
    first = ends(tmp_path, "t@1", is_leg=True)
    second = ends(tmp_path, "t@2", is_leg=True, after="t@1")
    waits = ends(tmp_path, "run", after="t@2")
    outcomes, _ = make(study, [waits, second, first])
    assert list(outcomes) == ["t@1", "t@2", "run"]


def test_what_waits_for_a_failure_is_not_begun(study, tmp_path):
    leg, waits = ends(tmp_path, "t@1", 6, is_leg=True), ends(tmp_path, "run", after="t@1")
    outcomes, _ = make(study, [leg, waits])
    assert list(outcomes) == ["t@1"]
    assert study.status(waits) == "pending"
    status = {one.id: study.status(one) for one in (leg, waits)}
    assert needed([leg, waits], status, retry_failed=False) == []
    assert needed([leg, waits], status, retry_failed=True) == [leg, waits]


def test_legs_that_nobody_waits_for_are_not_made(study, tmp_path):
    leg, waits = ends(tmp_path, "t@1", is_leg=True), ends(tmp_path, "run", after="t@1")
    make(study, [leg, waits])
    study.record(leg, Outcome(None, ""))
    status = {"t@1": "pending", "run": "done"}
    assert needed([leg, waits], status, retry_failed=True) == []


def test_a_stop_is_passed_on_and_the_rest_not_begun(study, tmp_path):
    tasks = [task(tmp_path, name, "-c", STOPS, str(tmp_path / "runs" / name)) for name in "abc"]

    class Stop(StopRequest):
        def poll(self):
            return "a test" if all((tmp_path / "runs" / name / "ready").exists() for name in "ab") else None

    with pytest.raises(StopRequested, match="1 tasks not begun"):
        make(study, tasks, stop=Stop())
    assert [study.status(one) for one in tasks] == ["stopped", "stopped", "pending"]
    assert study.outcome(tasks[0]).reason == "saved"
    assert len(needed(tasks, {one.id: study.status(one) for one in tasks}, retry_failed=False)) == 3


def test_an_impatient_user_leaves_no_process(study, tmp_path):
    deaf = "import pathlib, os, signal, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    deaf += "pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))\ntime.sleep(60)"
    started = tmp_path / "pid"

    class Stop(StopRequest):
        def poll(self):
            if started.exists() and started.read_text():
                raise KeyboardInterrupt

    one = task(tmp_path, "deaf", "-c", deaf, str(started))
    with pytest.raises(KeyboardInterrupt):
        make(study, [one], stop=Stop())
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)
    assert study.status(one) == "stopped"


def test_a_living_process_keeps_its_run_after_its_runner_is_gone(study, tmp_path):
    one = ends(tmp_path, "one")
    begun = task_process.start(study, one, [sys.executable, "-c", "import time; time.sleep(60)"], os.environ)
    # The runner dies: its descriptor closes, the process lives on.
    begun.lock.release()
    try:
        assert study.status(one) == "running"
        outcomes, said = make(study, [one])
        assert outcomes == {}
        assert "still at it" in said[0]
        assert needed([one], {"one": "running"}, retry_failed=True) == []
    finally:
        begun.process.kill()
        begun.process.wait()
    assert study.status(one) == "stopped"


def test_an_end_that_no_runner_saw_is_read_from_the_run(study, tmp_path):
    one = ends(tmp_path, "one")
    study.record(one, Outcome(None, "", attempts=1))
    one.directory.mkdir(parents=True)
    (one.directory / "exit.json").write_text(json.dumps({"code": 0, "reason": "done"}))
    assert study.status(one) == "done"


def test_two_runners_do_not_meet(study):
    lock = study.runner_lock()
    with pytest.raises(ConfigurationError, match=rf"another runner \(process {os.getpid()} on "):
        study.runner_lock()
    lock.release()
    study.runner_lock().release()


def test_a_lock_ends_with_its_holder(tmp_path):
    path = tmp_path / "l.lock"
    code = f"import fcntl, sys\nfile = open({str(path)!r}, 'w')\nfcntl.flock(file, fcntl.LOCK_EX)\nprint(flush=True)\n"
    holder = subprocess.Popen([sys.executable, "-c", code + "input()"], stdin=-1, stdout=-1)
    holder.stdout.readline()
    assert Lock.take(path) is None
    holder.kill()
    holder.communicate()
    Lock.take(path).release()


def test_every_run_has_gpus_of_its_own(study, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    show = "import os, pathlib, sys, time\npathlib.Path(sys.argv[1]).write_text(os.environ['CUDA_VISIBLE_DEVICES'])\n"
    show += "time.sleep(0.3)"
    tasks = [task(tmp_path, str(n), "-c", show, str(tmp_path / f"gpus{n}")) for n in range(4)]
    begun = time.monotonic()
    make(study, tasks, at_once=3, machine=Machine(cores=8, memory_bytes=2**40, gpus=3))
    assert time.monotonic() - begun > 0.5
    seen = [(tmp_path / f"gpus{n}").read_text() for n in range(4)]
    assert sorted(seen[:3]) == ["4", "5", "6"]
    assert seen[3] in "456"


def cost(ranks=1, gib=0.0):
    fields = dict.fromkeys(Cost.__dataclass_fields__, 0)
    return Cost(**{**fields, "id": "big", "ranks": ranks, "bytes_per_rank": gib * 2**30})


@pytest.mark.parametrize(
    "machine, costs, expected",
    [
        (Machine(8, 64 * 2**30, 0), [cost()], 8),
        (Machine(8, 64 * 2**30, 0), [cost(), cost(ranks=4)], 2),
        (Machine(8, 64 * 2**30, 0), [cost(gib=15)], 4),
        (Machine(2, 64 * 2**30, 0), [cost(ranks=4)], 1),
        (Machine(8, 1, 0), [cost()], 1),
        (Machine(64, 2**40, 8), [cost(), cost(ranks=2)], 4),
    ],
)
def test_as_many_at_once_as_fit(machine, costs, expected):
    assert at_once_here(machine, costs) == expected


def test_a_run_that_needs_more_gpus_belongs_to_slurm():
    with pytest.raises(ConfigurationError, match="big needs 16 GPUs, this machine has 8; submit it to Slurm"):
        at_once_here(Machine(64, 2**40, 8), [cost(ranks=16)])
