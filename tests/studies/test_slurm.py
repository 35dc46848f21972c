"""Arrays of a study: their waves and parameters, and submitit running them here and on a real Slurm."""

import json
import subprocess
import sys
import time

import pytest

from card_scale.config import Config
from card_scale.errors import ConfigurationError
from card_scale.studies import slurm as slurms
from card_scale.studies.grid import Slurm
from card_scale.studies.slurm import Array, arrays, describe, parameters
from card_scale.studies.state import StudyDirectory
from card_scale.studies.tasks import Task
from tests.launchers.processes import REPOSITORY, environment
from tests.launchers.test_slurm import CLUSTER, MISSING, free_ports

EXIT = "import json, pathlib, sys; d = pathlib.Path(sys.argv[1]); d.mkdir(parents=True, exist_ok=True); "
EXIT += (
    "(d / 'exit.json').write_text(json.dumps({'code': int(sys.argv[2]), 'reason': 'so'})); sys.exit(int(sys.argv[2]))"
)


def task(name, directory, ranks=1, after=None, code=0):
    return Task(
        id=name,
        command=("-c", EXIT, str(directory / name), str(code)),
        directory=directory / name,
        config=Config(),
        ranks=ranks,
        steps=1,
        new_steps=1,
        new_evaluations=1,
        after=after,
    )


def test_waves_keep_the_order_and_ranks_make_the_shape(tmp_path):
    tasks = [
        task("t@1", tmp_path, 16),
        task("t@2", tmp_path, 16, after="t@1"),
        task("a", tmp_path, 16, after="t@1"),
        task("b", tmp_path, 16, after="t@2"),
        task("small", tmp_path, 4),
    ]
    found = [([one.id for one in a.tasks], a.nodes, a.ranks_per_node, a.wave) for a in arrays(tasks, Slurm())]
    assert found == [
        (["small"], 1, 4, 0),
        (["t@1"], 2, 8, 0),
        (["t@2", "a"], 2, 8, 1),
        (["b"], 2, 8, 2),
    ]


def test_ranks_that_do_not_fill_their_nodes_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="9 ranks, which do not fill nodes"):
        arrays([task("a", tmp_path, 9)], Slurm())


def test_parameters_of_an_array(tmp_path):
    array = Array((task("a", tmp_path, 16),), 2, 8, 1)
    asked = parameters(array, Slurm(parameters={"timeout_min": 60, "slurm_partition": "gpu"}), ["11", "12"])
    assert asked == {
        "name": "card_scale",
        "nodes": 2,
        "tasks_per_node": 1,
        "gpus_per_node": 8,
        "slurm_dependency": "afterany:11:12",
        "timeout_min": 60,
        "slurm_partition": "gpu",
    }
    assert "gpus_per_node" not in parameters(array, Slurm(gpus=False), [])
    assert "array of 1 jobs, wave 1, after wave 0: name=card_scale nodes=2" in describe(array, Slurm())


@pytest.fixture
def submitit(monkeypatch) -> None:
    """Skip without submitit; take back the variable that a submission sets."""
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", slurms.STOP_SIGNAL)


@pytest.mark.usefixtures("submitit")
def test_jobs_keep_the_records_of_the_local_runner(tmp_path, monkeypatch):
    monkeypatch.setattr(slurms, "command_line", lambda one: [sys.executable, *one.command])
    study = StudyDirectory(tmp_path / "study")
    tasks = [
        task("leg", tmp_path),
        task("run", tmp_path, after="leg"),
        task("bad", tmp_path, code=6),
        task("waits", tmp_path, after="bad"),
    ]
    jobs = slurms.submit(study, tasks, Slurm(gpus=False, parameters={"timeout_min": 5}), "debug")
    assert set(jobs) == {"leg", "run", "bad", "waits"}
    assert [study.status(one) for one in tasks] == ["done", "done", "failed", "pending"]
    assert study.outcome(tasks[2]).reason == "so"
    assert json.loads((study.path / "slurm/jobs.json").read_text()) == jobs


@pytest.mark.usefixtures("submitit")
def test_a_preempted_job_has_saved_and_is_put_back(tmp_path):
    from card_scale.studies import task_process

    study = StudyDirectory(tmp_path / "study")
    one = task("a", tmp_path)
    code = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); print('up', flush=True); "
    begun = task_process.start(study, one, [sys.executable, "-c", code + "time.sleep(60)"], {})
    while "up" not in study.log(one).read_text():
        time.sleep(0.02)
    job = slurms.ArrayTask(study, one, None, Array((one,), 1, 1, 0), begun)
    again = job.checkpoint()
    assert study.status(one) == "stopped"
    assert again.function is job
    assert job.running is None


@pytest.mark.usefixtures("submitit")
def test_an_unknown_parameter_is_refused(tmp_path):
    study = StudyDirectory(tmp_path)
    with pytest.raises(ConfigurationError, match="submitit refuses a parameter"):
        slurms.submit(study, [task("a", tmp_path)], Slurm(parameters={"partitions": "x"}), "local")


@pytest.mark.skipif(bool(MISSING), reason=f"no Slurm here: {', '.join(MISSING)} not installed")
@pytest.mark.usefixtures("submitit")
def test_a_real_array(tmp_path, write_grid):
    """Two runs as an array on the tests' own cluster; the second command finds nothing left to do."""
    slurm = {"devices_per_node": 2, "gpus": False, "timeout_min": 10, "cpus_per_task": 1}
    grid = write_grid(epochs=[1], slurm=slurm)
    cluster = tmp_path / "cluster"
    cluster.mkdir()
    variables = environment(SLURM_CONF=str(cluster / "slurm.conf"), OMP_NUM_THREADS="1")
    command = [sys.executable, str(REPOSITORY / "tools/study.py"), "run", str(grid), "--directory", str(tmp_path / "s")]
    outcomes = tmp_path / "s/outcomes"
    keys = {"cwd": REPOSITORY, "env": variables, "capture_output": True, "text": True, "timeout": 120}
    try:
        subprocess.run(
            [CLUSTER, "start", str(cluster), *map(str, free_ports(3))], check=True, timeout=60, env=variables
        )
        submitted = subprocess.run([*command, "--slurm"], check=False, **keys)
        assert "submitted 2 jobs" in submitted.stdout, submitted.stderr
        end = time.monotonic() + 240
        while (codes := [json.loads(file.read_text())["code"] for file in outcomes.glob("*.json")]) != [0, 0]:
            assert time.monotonic() < end, codes
            assert not set(codes) - {None, 0}, codes
            time.sleep(0.5)
        again = subprocess.run([*command, "--slurm"], check=False, **keys)
        assert "submitted 0 jobs" in again.stdout, again.stderr
    finally:
        subprocess.run([CLUSTER, "stop", str(cluster)], timeout=30, env=variables, check=False)
