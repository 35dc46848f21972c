"""Runs a study's tasks on this machine, as many at once as fit, until all are done or somebody asks to stop."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from card_scale.errors import ConfigurationError, StopRequested
from card_scale.studies.plan import Cost
from card_scale.studies.state import Outcome, Status, StudyDirectory
from card_scale.studies.task_process import TaskProcess, command_line, conclude, start
from card_scale.studies.tasks import Task
from card_scale.training.stop import StopRequest

PROCESS_BYTES = 2**30
"""Resident memory of a process besides model states and activations: libraries, logits, the allocator's slack."""

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Machine:
    """What runs share."""

    cores: int
    memory_bytes: int
    """Memory that is free now."""
    gpus: int


def this_machine() -> Machine:
    """Return cores, free memory and visible GPUs of this process."""
    # Only here: a plan needs neither.
    import psutil
    import torch

    return Machine(len(os.sched_getaffinity(0)), psutil.virtual_memory().available, torch.cuda.device_count())


def at_once_here(machine: Machine, costs: Sequence[Cost]) -> int:
    """Return how many of the tasks fit on a machine side by side: a GPU or a core for each rank, and memory for all.

    Raises ConfigurationError for a task with more ranks than there are GPUs, where there are any.
    """
    widest = max(costs, key=lambda cost: cost.ranks)
    if machine.gpus:
        if widest.ranks > machine.gpus:
            raise ConfigurationError(
                f"{widest.id} needs {widest.ranks} GPUs, this machine has {machine.gpus}; submit it to Slurm (--slurm)"
            )
        return machine.gpus // widest.ranks
    largest = max(cost.ranks * (cost.bytes_per_rank + PROCESS_BYTES) for cost in costs)
    return max(1, min(machine.cores // widest.ranks, int(machine.memory_bytes // largest)))


def needed(tasks: Sequence[Task], status: Mapping[str, Status], *, retry_failed: bool) -> list[Task]:
    """Return the tasks to make: runs that are not done, and the legs of trunks that they wait for, in their order.

    Failed ones only if asked; a running one is somebody else's. What waits for one of either is left out.
    """
    redo: set[Status] = {"pending", "stopped", "failed"} if retry_failed else {"pending", "stopped"}
    blocked: set[str] = set()
    for task in tasks:
        if status[task.id] != "done" and (status[task.id] not in redo or task.after in blocked):
            blocked.add(task.id)
    wanted = {task.id for task in tasks if not task.is_leg and status[task.id] != "done"} - blocked
    for task in reversed(tasks):
        if task.id in wanted and task.after is not None and status[task.after] != "done":
            wanted.add(task.after)
    return [task for task in tasks if task.id in wanted]


class LocalRunner:
    """Makes tasks side by side. ``seconds`` maps task ids to their estimated time: the longest start first."""

    def __init__(
        self,
        study: StudyDirectory,
        tasks: Sequence[Task],
        *,
        at_once: int,
        machine: Machine,
        seconds: Mapping[str, float],
        say: Callable[[str], None] = print,
    ):
        self.study, self.at_once, self.machine, self.say = study, at_once, machine, say
        self.waiting = sorted(tasks, key=lambda task: (not task.is_leg, -seconds[task.id]))
        self.count, self.ended = len(tasks), 0
        self.free_gpus = list(range(machine.gpus))
        self.running: dict[str, tuple[TaskProcess, list[int]]] = {}
        self.outcomes: dict[str, Outcome] = {}

    def run(self, stop: StopRequest) -> dict[str, Outcome]:
        """Make all tasks; return how each ended. A failure ends nothing but the tasks that wait for it.

        Raises StopRequested once everything that was running has saved and ended; KeyboardInterrupt after a second
        Ctrl-C, when everything has been killed.
        """
        try:
            while self.waiting or self.running:
                if reason := stop.poll():
                    self._stop_all(reason)
                self._fill()
                self._reap()
                if not self.running and self.waiting and not self._startable():
                    break  # what is left waits for tasks that failed, or that somebody else runs
                time.sleep(_POLL_SECONDS)
        except BaseException:
            for running, _ in self.running.values():
                running.kill()
            while self.running:
                self._reap()
                time.sleep(_POLL_SECONDS)
            raise
        return self.outcomes

    def _startable(self) -> Task | None:
        """Return the next task whose predecessor is done and whose trunk is not in use."""
        in_use = {running.task.directory for running, _ in self.running.values()}
        for task in self.waiting:
            if task.directory not in in_use and (task.after is None or self._is_done(task.after)):
                return task
        return None

    def _is_done(self, task_id: str) -> bool:
        if task_id in self.outcomes:
            return self.outcomes[task_id].status == "done"
        return all(task_id != task.id for task in self.waiting) and task_id not in self.running

    def _fill(self) -> None:
        while len(self.running) < self.at_once and (task := self._startable()) is not None:
            if self.machine.gpus and task.ranks > len(self.free_gpus):
                return
            self.waiting.remove(task)
            gpus = [self.free_gpus.pop(0) for _ in range(task.ranks)] if self.machine.gpus else []
            begun = start(self.study, task, command_line(task), self._environment(task, gpus))
            if isinstance(begun, TaskProcess):
                self.running[task.id] = (begun, gpus)
                self.say(f"started   {task.id}")
                continue
            self.free_gpus += gpus
            if begun is None:
                self.say(f"skipped   {task.id}: a process of an earlier runner is still at it")
            else:
                self._ended(task, begun)

    def _environment(self, task: Task, gpus: list[int]) -> dict[str, str]:
        variables = dict(os.environ)
        threads = max(1, self.machine.cores // (self.at_once * task.ranks))
        variables.setdefault("OMP_NUM_THREADS", str(threads))
        if gpus:
            visible = variables.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(self.machine.gpus)))).split(",")
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(visible[gpu] for gpu in gpus)
        return variables

    def _reap(self) -> None:
        for running, gpus in list(self.running.values()):
            if running.process.poll() is not None:
                del self.running[running.task.id]
                self.free_gpus += gpus
                self._ended(running.task, conclude(self.study, running))

    def _ended(self, task: Task, outcome: Outcome) -> None:
        self.outcomes[task.id] = outcome
        self.ended += 1
        what = {"done": "done", "failed": f"FAILED {outcome.code}", "stopped": "stopped"}[outcome.status]
        reason = "" if outcome.status == "done" else f": {outcome.reason}"
        self.say(f"{what:9} {task.id} ({self.ended} of {self.count}, {outcome.seconds:.0f} s){reason}")

    def _stop_all(self, reason: str) -> None:
        """Ask everything that runs to save and end, wait for it, and raise StopRequested."""
        self.say(f"{reason}: asked {len(self.running)} runs to save and stop")
        for running, _ in self.running.values():
            running.ask_to_stop()
        while self.running:
            self._reap()
            time.sleep(_POLL_SECONDS)
        raise StopRequested(f"{self.count - self.ended} tasks not begun; the same command goes on")
