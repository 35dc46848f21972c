"""What ``study.py status`` says, from records written by hand."""

import pytest

from card_scale.studies.endings import statuses
from card_scale.studies.grid import load
from card_scale.studies.plan import plan
from card_scale.studies.progress import progress, summary
from card_scale.studies.runner import needed
from card_scale.studies.spec import specs
from card_scale.studies.state import Outcome, StudyDirectory
from card_scale.studies.tasks import tasks_of
from card_scale.units import duration
from tests.studies.test_results import evaluation, training, write_records


@pytest.fixture
def found(write_grid, tmp_path):
    """Four runs of 10 and 20 updates: done, stopped after 8, failed, pending; the done one took twice its plan."""
    grid = load(write_grid(arms={"ar": {"objective.name": "ar"}, "mdlm": {"objective.name": "mdlm"}}, epochs=[2, 4]))
    runs = specs(grid, tmp_path)
    study, tasks = StudyDirectory(tmp_path), tasks_of(runs, tmp_path, branching=False)
    done, stopped, failed, _ = reversed(tasks)
    costs = {cost.id: cost for cost in plan(grid, runs, tasks, {}).costs}
    write_records(
        done.directory, [evaluation(0, 6.0), training(20) | {"step_seconds": 1.0}, evaluation(20, 5.0, bound=True)]
    )
    study.record(done, Outcome(0, "done", 1, 2 * costs[done.id].seconds))
    write_records(stopped.directory, [evaluation(0, 6.0), training(8) | {"step_seconds": 30.0, "loss_interval": 4.5}])
    study.record(stopped, Outcome(75, "stopped", 1, 10.0))
    study.record(failed, Outcome(6, "the loss is nan", 1, 1.0))
    return progress(study, tasks, costs), costs


def test_each_line_says_how_far(found):
    pending, failed, stopped, done = found[0]
    assert not stopped.task.config.objective.likelihood_is_exact
    assert "20 of 20 steps  validation loss <= 5.0000" in done.line()
    assert "-4ep-" in done.task.id
    assert "8 of 10 steps  training loss <= 4.5000  about 1 min 00 s left" in stopped.line()
    assert failed.line().endswith("0 of 20 steps: the loss is nan")
    assert pending.line().endswith("0 of 10 steps")


def test_the_rest_rests_on_the_speed_that_was_seen(found):
    (pending, *_), costs = found
    assert pending.seconds_left == pytest.approx(2 * costs[pending.task.id].seconds)
    left = pending.seconds_left + 60.0
    assert summary(found[0], 1).startswith("1 pending, 1 failed, 1 stopped, 1 done; about ")
    assert f"{duration(left)} left" in summary(found[0], 1)
    assert summary([found[0][-1]], 1) == "1 done"


def test_a_run_whose_loss_is_not_finite_has_failed_for_all_who_ask(write_grid, tmp_path):
    grid = load(write_grid(arms={"ar": {"objective.name": "ar"}}, epochs=[2]))
    study, tasks = StudyDirectory(tmp_path), tasks_of(specs(grid, tmp_path), tmp_path, branching=False)
    write_records(tasks[0].directory, [evaluation(10, None)])
    study.record(tasks[0], Outcome(0, "done", 1, 1.0))
    assert statuses(study, tasks) == {tasks[0].id: "failed"}
    assert needed(tasks, statuses(study, tasks), retry_failed=True) == tasks


@pytest.mark.parametrize(
    "more, words", [({}, "training loss 9.0000"), ({"loss_interval": 4.5}, "training loss 4.5000")]
)
def test_the_training_loss_is_the_mean_since_the_last_line_where_it_is_recorded(write_grid, tmp_path, more, words):
    grid = load(write_grid(arms={"ar": {"objective.name": "ar"}}, epochs=[2]))
    runs = specs(grid, tmp_path)
    study, tasks = StudyDirectory(tmp_path), tasks_of(runs, tmp_path, branching=False)
    costs = {cost.id: cost for cost in plan(grid, runs, tasks, {}).costs}
    write_records(tasks[0].directory, [training(8) | {"step_seconds": 30.0} | more])
    study.record(tasks[0], Outcome(75, "stopped", 1, 10.0))
    assert words in progress(study, tasks, costs)[0].line()
