"""The process that runs a task: started, asked to stop, and its end put on record."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from card_scale.errors import CardScaleError, ExitCode
from card_scale.studies import branches
from card_scale.studies.state import Lock, Outcome, StudyDirectory
from card_scale.studies.tasks import Task
from card_scale.training.run_directory import RunDirectory

LAUNCHERS = Path(__file__).resolve().parents[2] / "launchers"


def command_line(task: Task) -> list[str]:
    """Return the command that runs a task on this machine."""
    if task.ranks == 1:
        return [sys.executable, "-m", "card_scale.train", *task.command]
    # The script forwards a stop request to the ranks and returns the run's own exit code.
    return [str(LAUNCHERS / "torchrun_one_node.sh"), "--nproc", str(task.ranks), *task.command]


@dataclass
class TaskProcess:
    """The process that runs a task, or did until it is concluded."""

    task: Task
    process: subprocess.Popen
    lock: Lock
    before: Outcome
    began: float
    stopping: bool = False

    def ask_to_stop(self) -> None:
        """Ask the run to save and end; again if it was not heard."""
        self.stopping = True
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the run's processes at once; its last checkpoint stays."""
        self.stopping = True
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)


def start(
    study: StudyDirectory, task: Task, command: list[str], environment: Mapping[str, str]
) -> TaskProcess | Outcome | None:
    """Start a task's process in a process group of its own, its output appended to the task's log.

    Returns:
        The process; None while an earlier process of the task is still alive; the outcome, already on record, where
        the task cannot start.
    """
    lock = study.lock(task)
    if lock is None:
        return None
    before = study.outcome(task)
    RunDirectory(task.directory).exit.unlink(missing_ok=True)
    try:
        if task.branch:
            branches.seed(task.directory, task.branch)
        study.log(task).parent.mkdir(parents=True, exist_ok=True)
        log = study.log(task).open("a", encoding="utf-8")
    except (CardScaleError, OSError) as error:
        code = error.exit_code if isinstance(error, CardScaleError) else ExitCode.DATA
        outcome = Outcome(int(code), str(error), before.attempts + 1, before.seconds)
        study.record(task, outcome)
        lock.release()
        return outcome
    with log:
        study.record(task, Outcome(None, "", before.attempts + 1, before.seconds))
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(lock.descriptor,),
        )
    return TaskProcess(task, process, lock, before, time.monotonic())


def conclude(study: StudyDirectory, running: TaskProcess) -> Outcome:
    """Put on record how a task that was running has ended."""
    code, reason = _ending(running)
    seconds = running.before.seconds + time.monotonic() - running.began
    outcome = Outcome(code, reason, running.before.attempts + 1, seconds)
    study.record(running.task, outcome)
    running.lock.release()
    return outcome


def _ending(running: TaskProcess) -> tuple[int, str]:
    """Return exit code and reason of an ended process; the run's own record knows best."""
    returned = running.process.returncode
    recorded = RunDirectory(running.task.directory).read_exit()
    if recorded is not None and (recorded[0] == 0) == (returned == 0):
        return recorded
    if running.stopping:
        return ExitCode.STOPPED, "stopped before it could save; its last checkpoint is intact"
    if returned < 0:
        return returned, f"killed by {signal.Signals(-returned).name}"
    return returned or 1, f"ended with code {returned} and left no record; see its log"
