"""A study on Slurm: arrays of jobs, submitted through submitit, that keep the same records as the local runner.

Tasks that wait for one another go into waves, each an array (one for each number of ranks) that depends on the arrays
of the wave before.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from card_scale.errors import ConfigurationError
from card_scale.files import read_json, write_atomically
from card_scale.studies import task_process
from card_scale.studies.grid import Slurm
from card_scale.studies.state import Outcome, StudyDirectory
from card_scale.studies.task_process import LAUNCHERS, TaskProcess, command_line
from card_scale.studies.tasks import Task

Cluster = Literal["slurm", "local", "debug"]
"""Where submitit runs jobs: on Slurm; for tests in processes of this machine, or in this process."""

STOP_SIGNAL = "USR1"
"""What Slurm sends before a time limit or a preemption. Training processes take it for a stop request."""

_POLL_SECONDS = 0.5


class Array(NamedTuple):
    """Jobs of one shape that may start together."""

    tasks: tuple[Task, ...]
    nodes: int
    ranks_per_node: int
    wave: int
    """Arrays of a wave wait for those of the wave before."""


def arrays(tasks: Sequence[Task], slurm: Slurm) -> list[Array]:
    """Return the arrays of a study's tasks, earlier waves first.

    Raises ConfigurationError for a task whose ranks do not fill its nodes evenly.
    """
    waves: dict[str, int] = {}
    grouped: dict[tuple[int, int], list[Task]] = {}
    for task in tasks:
        waves[task.id] = waves.get(task.after or "", -1) + 1
        grouped.setdefault((waves[task.id], task.ranks), []).append(task)
    found = []
    for (wave, ranks), members in sorted(grouped.items(), key=lambda item: item[0]):
        nodes = -(-ranks // slurm.devices_per_node)
        if ranks % nodes:
            raise ConfigurationError(
                f"{members[0].id} has {ranks} ranks, which do not fill nodes of slurm.devices_per_node = "
                f"{slurm.devices_per_node} evenly"
            )
        found.append(Array(tuple(members), nodes, ranks // nodes, wave))
    return found


def parameters(array: Array, slurm: Slurm, after: Sequence[str]) -> dict[str, Any]:
    """Return submitit's parameters for an array that starts when the jobs ``after`` have ended."""
    asked = {"name": "card_scale", "nodes": array.nodes, "tasks_per_node": 1}
    if slurm.gpus:
        asked["gpus_per_node"] = array.ranks_per_node
    if after:
        asked["slurm_dependency"] = "afterany:" + ":".join(after)
    return {**asked, **slurm.parameters}


def describe(array: Array, slurm: Slurm) -> str:
    """Return what would be submitted, for ``--dry-run``."""
    shown = " ".join(f"{key}={value}" for key, value in parameters(array, slurm, ()).items())
    wait = f", after wave {array.wave - 1}" if array.wave else ""
    lines = [f"array of {len(array.tasks)} jobs, wave {array.wave}{wait}: {shown}"]
    return "\n".join(lines + [f"  {task.id}: {' '.join(command_line(task))}" for task in array.tasks])


def submit(study: StudyDirectory, tasks: Sequence[Task], slurm: Slurm, cluster: Cluster) -> dict[str, str]:
    """Submit tasks; return their job ids, which are also kept in the study's directory.

    Raises ConfigurationError without submitit, without Slurm, or for a parameter that submitit does not know.
    """
    # submitit reads the variable when it is imported, here and, by the inherited environment, in the jobs.
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = STOP_SIGNAL
    try:
        import submitit
    except ImportError:
        raise ConfigurationError("submission needs submitit: pip install -c constraints.txt -e .[slurm]") from None
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise ConfigurationError("there is no sbatch here; submit from a machine of the cluster")
    by_id = {task.id: task for task in tasks}
    jobs: dict[str, str] = {}
    previous: dict[int, list[str]] = {}
    for array in arrays(tasks, slurm):
        executor = submitit.AutoExecutor(study.path / "slurm", cluster=cluster)
        asked = parameters(array, slurm, previous.get(array.wave - 1, []) if cluster == "slurm" else [])
        try:
            executor.update_parameters(**asked)
        except (NameError, ValueError, TypeError) as error:
            raise ConfigurationError(f"submitit refuses a parameter of slurm: {error}") from None
        with executor.batch():
            submitted = [
                executor.submit(ArrayTask(study, task, by_id.get(task.after or ""), array)) for task in array.tasks
            ]
        ids = [str(job.job_id) for job in submitted]
        jobs |= dict(zip((task.id for task in array.tasks), ids, strict=True))
        # At once: where a later array is refused, this one is in the queue.
        listed = json.dumps({**_jobs(study), **jobs}, indent=1) + "\n"
        (study.path / "slurm").mkdir(parents=True, exist_ok=True)
        write_atomically(study.path / "slurm" / "jobs.json", listed.encode())
        previous.setdefault(array.wave, []).extend(sorted({job.partition("_")[0] for job in ids}))
        if cluster != "slurm":
            # Without a scheduler nothing else would keep the order of waves.
            for job in submitted:
                job.result()
    return jobs


def queued(study: StudyDirectory) -> set[str]:
    """Return the ids of tasks whose jobs still wait or run."""
    jobs = _jobs(study)
    if not jobs:
        return set()
    listed = subprocess.run(
        ["squeue", "--me", "--noheader", "--array", "--format=%i"], capture_output=True, text=True, check=False
    )
    if listed.returncode:
        raise ConfigurationError(f"squeue does not say which jobs wait or run: {listed.stderr.strip()}")
    active = set(listed.stdout.split())
    return {task for task, job in jobs.items() if job in active}


def _jobs(study: StudyDirectory) -> dict[str, str]:
    path = study.path / "slurm" / "jobs.json"
    return read_json(path) if path.is_file() else {}


@dataclass
class ArrayTask:
    """What a job runs: one task, on one node or as one node's part of it. submitit pickles it."""

    study: StudyDirectory
    task: Task
    after: Task | None
    array: Array
    running: TaskProcess | None = None

    def __call__(self) -> str:
        """Run the task; return how it ended in words. Its outcome is on record in the study's directory."""
        import submitit

        job = submitit.JobEnvironment()
        if self.after is not None and self.study.outcome(self.after).status != "done":
            return f"not begun: {self.after.id} is {self.study.outcome(self.after).status}"
        environment = dict(os.environ)
        if job.node:
            # The first node keeps the records.
            return f"ended with {subprocess.run(self._command(job), env=environment, check=False).returncode}"
        begun = task_process.start(self.study, self.task, self._command(job), environment)
        if begun is None:
            return "not begun: a process of this task is still alive"
        if isinstance(begun, Outcome):
            return begun.reason
        self.running = begun
        self._wait()
        return task_process.conclude(self.study, begun).reason

    def checkpoint(self) -> Any:
        """Save and stop before the time limit or a preemption; submitit then puts the job back into the queue."""
        import submitit

        if self.running is not None:
            self.running.ask_to_stop()
            self._wait()
            task_process.conclude(self.study, self.running)
            self.running = None
        return submitit.helpers.DelayedSubmission(self)

    def _wait(self) -> None:
        """Wait until the process has ended, without the locks of Popen.wait: a signal handler waits here too."""
        assert self.running is not None
        while os.waitid(os.P_PID, self.running.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(_POLL_SECONDS)
        self.running.process.wait()

    def _command(self, job: Any) -> list[str]:
        if self.array.nodes == 1:
            return command_line(self.task)
        port = 20000 + int(job.job_id.partition("_")[0]) % 10000
        return [
            str(LAUNCHERS / "torchrun_multi_node.sh"),
            *("--nnodes", str(self.array.nodes), "--head", f"{job.hostnames[0]}:{port}", "--job-id", job.job_id),
            *("--nproc", str(self.array.ranks_per_node), *self.task.command),
        ]
