"""How a task has ended, by its runner's record and by what the run itself has recorded: one status for all who ask."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from card_scale.studies.state import Status, StudyDirectory
from card_scale.studies.tasks import Task
from card_scale.training.records import evaluations_of, read_metrics
from card_scale.training.run_directory import RunDirectory


class Ending(NamedTuple):
    """How a task has ended, or that it has not."""

    status: Status
    code: int | None
    reason: str


def statuses(study: StudyDirectory, tasks: Sequence[Task]) -> dict[str, Status]:
    """Return each task's status by its id."""
    by_id = {task.id: task for task in tasks}
    return {
        task.id: ending(study, task, by_id, read_metrics(RunDirectory(task.directory).metrics)).status for task in tasks
    }


def ending(study: StudyDirectory, task: Task, tasks: Mapping[str, Task], records: Sequence[dict[str, Any]]) -> Ending:
    """Return how a task has ended; what a trunk failed of, its branches failed of."""
    status, outcome = study.status(task), study.outcome(task)
    leg = tasks[task.after] if task.after else None
    while status == "pending" and leg is not None:
        if study.outcome(leg).status == "failed":
            failed = study.outcome(leg)
            return Ending("failed", failed.code, f"its trunk {leg.id} failed: {failed.reason}")
        leg = tasks[leg.after] if leg.after else None
    if status == "done" and not task.is_leg:
        evaluations = evaluations_of(records)
        if not evaluations or evaluations[-1]["step"] != task.steps:
            return Ending("failed", outcome.code, f"its records end before the evaluation after step {task.steps}")
        if evaluations[-1]["validation_nll"] is None:
            return Ending("failed", outcome.code, "its validation loss is not finite")
    return Ending(status, outcome.code, outcome.reason)
