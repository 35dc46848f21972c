"""How far a study's tasks are, and how long the rest will take."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from card_scale.studies.endings import Ending, ending
from card_scale.studies.plan import Cost
from card_scale.studies.state import Status, StudyDirectory
from card_scale.studies.tasks import Task
from card_scale.training.records import evaluations_of, read_metrics
from card_scale.training.run_directory import RunDirectory
from card_scale.units import duration


class Progress(NamedTuple):
    """How far a task is."""

    task: Task
    status: Status
    step: int
    """Updates of the directory that are on record, at most those that the task is to reach."""
    loss: float | None
    """Of the last evaluation of a trained model, nats per token."""
    training_loss: float | None
    """Of the last training line: the mean over its updates, nats per token."""
    reason: str
    """Why it failed."""
    seconds_left: float
    """0 of one that is done; of others from the speed on record, else from the plan."""

    def line(self) -> str:
        """Return the progress as a line."""
        parts = [f"{self.status:8}", self.task.id, f"{self.step:,} of {self.task.steps:,} steps"]
        relation = "" if self.task.config.objective.likelihood_is_exact else "<= "
        if self.loss is not None:
            parts.append(f"validation loss {relation}{self.loss:.4f}")
        if self.status in ("running", "stopped"):
            parts += [f"training loss {relation}{self.training_loss:.4f}"] if self.training_loss is not None else []
            parts.append(f"about {duration(self.seconds_left)} left")
        return "  ".join(parts) + (f": {self.reason}" if self.status == "failed" else "")


def progress(study: StudyDirectory, tasks: Sequence[Task], costs: Mapping[str, Cost]) -> list[Progress]:
    """Return how far each task is; ``costs`` are the plan's, by task."""
    by_id = {task.id: task for task in tasks}
    records = {task.id: read_metrics(RunDirectory(task.directory).metrics) for task in tasks}
    ended = {task.id: ending(study, task, by_id, records[task.id]) for task in tasks}
    pace = _pace(study, [task for task in tasks if ended[task.id].status == "done"], costs)
    return [_of(task, ended[task.id], records[task.id], costs[task.id].seconds * pace) for task in tasks]


def _pace(study: StudyDirectory, done: Sequence[Task], costs: Mapping[str, Cost]) -> float:
    """Return how many times as long as planned the finished tasks have taken; 1 where none is finished."""
    planned = sum(costs[task.id].seconds for task in done)
    taken = sum(study.outcome(task).seconds for task in done)
    return taken / planned if planned and taken else 1.0


def _of(task: Task, ended: Ending, recorded: Sequence[dict[str, Any]], planned: float) -> Progress:
    records = [record for record in recorded if record["step"] <= task.steps]
    evaluations = [r for r in evaluations_of(records) if r["step"] and r["validation_nll"] is not None]
    training = [r for r in records if _training_loss(r) is not None]
    step = max((record["step"] for record in records), default=0)
    left = task.steps - step
    seconds = planned * left / task.new_steps
    if training and step > task.steps - task.new_steps:
        seconds = training[-1]["step_seconds"] * left
    return Progress(
        task=task,
        status=ended.status,
        step=step,
        loss=evaluations[-1]["validation_nll"] if evaluations else None,
        training_loss=_training_loss(training[-1]) if training else None,
        reason=ended.reason,
        seconds_left=0.0 if ended.status in ("done", "failed") else seconds,
    )


def _training_loss(record: Mapping[str, Any]) -> float | None:
    """Return the mean loss of the updates of a training line; of the last of them, in a record from before the mean
    was written."""
    return record.get("loss_interval", record.get("loss"))


def summary(found: Sequence[Progress], at_once: int) -> str:
    """Return how many tasks have which status, and how long the rest will take: as many at once as run now, or where
    none does, as ``at_once``."""
    counts: dict[str, int] = {}
    for one in found:
        counts[one.status] = counts.get(one.status, 0) + 1
    text = ", ".join(f"{count} {status}" for status, count in counts.items())
    left = sum(one.seconds_left for one in found)
    if not left:
        return text
    at_once = counts.get("running") or at_once
    longest = max(one.seconds_left for one in found)
    return f"{text}; about {duration(max(left / at_once, longest))} left, {at_once} at once"
