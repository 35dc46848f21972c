"""The plan: work by hand, branching by hand, and what it refuses."""

import csv
import dataclasses
import json
from pathlib import Path

import pytest

from card_scale.errors import ConfigurationError
from card_scale.studies import plan
from card_scale.studies.grid import StatedCorpus, load
from card_scale.studies.spec import specs
from card_scale.studies.tasks import tasks_of
from tests.studies.conftest import BATCH, LENGTH, SAMPLES


def planned(path, directory, measured=None):
    grid = load(path)
    runs = specs(grid, directory)
    tasks = tasks_of(runs, directory, branching=grid.schedule == "wsd-branches")
    return runs, tasks, plan.plan(grid, runs, tasks, measured or {})


def test_work_by_hand(write_grid, tmp_path):
    runs, _, found = planned(write_grid(arms={"ar": {"objective.name": "ar"}}), tmp_path)
    vocabulary = -(-runs[0].corpus.vocabulary_size // 64) * 64
    hidden, ffn = 16, 24
    matrices = 4 * hidden**2 + 3 * hidden * ffn
    parameters = vocabulary * hidden + matrices + 3 * hidden
    per_token = 6 * (matrices + vocabulary * hidden) + 6 * LENGTH * hidden
    for cost, epochs in zip(found.costs, (1, 4), strict=True):
        assert cost.steps == epochs * SAMPLES // BATCH
        assert cost.tokens == cost.steps * BATCH * LENGTH
        assert cost.parameters == parameters
        assert cost.parameters_without_embeddings == matrices + 3 * hidden
        assert cost.flops == pytest.approx(cost.tokens * per_token)
        # Before the first and after the last step, on 8 validation and 8 training samples, forward only.
        assert cost.evaluation_flops == pytest.approx(2 * 16 * LENGTH * per_token / 3)
        assert cost.seconds == pytest.approx(10 + (cost.flops + cost.evaluation_flops) / 1e9)
        assert cost.device_hours == pytest.approx(cost.seconds / 3600)
        assert cost.bytes_per_rank > 16 * parameters
        assert cost.disk_bytes > 12 * parameters
    assert found.flops == sum(cost.flops for cost in found.costs)


@pytest.mark.parametrize("schedule", ["wsd", "wsd-branches"])
@pytest.mark.parametrize("every", [1, 2, 3, 4, 5, 20, 21])
def test_evaluations_are_counted_once_each(write_grid, tmp_path, schedule, every):
    """One before the first update, one after each ``every``-th, one at the end, which may be one of these."""
    grid = write_grid(schedule=schedule, epochs=[1, 2, 4], overrides={"train.eval_every": every})
    _, tasks, _ = planned(grid, tmp_path)
    for task in tasks:
        done = task.steps - task.new_steps
        steps = {step for step in range(done + 1, task.steps) if step % every == 0} | {task.steps}
        assert task.new_evaluations == len(steps if done else steps | {0})


def test_an_average_is_evaluated_too(write_grid, tmp_path):
    keys = {"arms": {"ar": {"objective.name": "ar"}}, "epochs": [1]}
    _, _, plain = planned(write_grid(**keys), tmp_path)
    _, _, averaged = planned(write_grid(**keys, overrides={"optimizer.ema": 0.9}), tmp_path)
    assert averaged.costs[0].evaluation_flops == 2 * plain.costs[0].evaluation_flops


@pytest.mark.parametrize(
    "save_every, keep_last, kept",
    [(0, 0, 1), (2, 0, 3), (4, 0, 2), (5, 0, 1), (7, 0, 1), (1, 0, 5), (1, 2, 2), (2, 2, 2), (2, 3, 3), (1, 9, 5)],
)
def test_every_checkpoint_that_is_kept_takes_disk(write_grid, tmp_path, save_every, keep_last, kept):
    """Five updates: saved after each ``save_every``-th, and after the last in any case; the newest are kept."""
    keys = {"arms": {"ar": {"objective.name": "ar"}}, "epochs": [1]}
    _, _, none = planned(write_grid(**keys), tmp_path)
    saves = {"train.save_every": save_every, "train.keep_last": keep_last}
    _, _, found = planned(write_grid(**keys, overrides=saves), tmp_path)
    (one,), (several,) = none.costs, found.costs
    further = several.disk_bytes - one.disk_bytes
    assert round(further / (12 * one.parameters)) == kept - 1


def test_evaluations_cost_what_the_objective_makes_of_them(write_grid, tmp_path):
    arms = {name: {"objective.name": name} for name in ("ar", "card", "mdlm")}
    arms["armd"] = {"objective.name": "armd", "objective.permuted": 4}
    sizes = {"s": {"model.layers": 2, "model.hidden": 16, "model.heads": 2, "model.ffn": 24}}
    _, _, found = planned(write_grid(arms=arms, sizes=sizes, epochs=[1]), tmp_path)
    cost = {one.arm: one.evaluation_flops / one.flops for one in found.costs}
    assert cost["card"] == pytest.approx(6 * cost["ar"])
    assert cost["mdlm"] == pytest.approx(4 * cost["ar"])
    # Left to right once; any order and orders as in training four draws each.
    assert cost["armd"] == pytest.approx(9 * cost["ar"])


def test_a_measurement_replaces_the_stated_speed(write_grid, tmp_path):
    _, _, stated = planned(write_grid(), tmp_path)
    _, _, timed = planned(write_grid(), tmp_path, {("card", "s"): 1e8})
    for before, after in zip(stated.costs, timed.costs, strict=True):
        slower = 10 if before.arm == "card" else 1
        assert after.seconds - 10 == pytest.approx(slower * (before.seconds - 10))
    assert "1 of the arms and sizes timed" in timed.basis


def test_branches_share_a_trunk(write_grid, tmp_path):
    runs, tasks, found = planned(write_grid(schedule="wsd-branches", epochs=[1, 2, 4], warmup_share=0.2), tmp_path)
    legs = [task for task in tasks if task.is_leg]
    branches = [task for task in tasks if task.branch]
    assert len(legs) == len(branches) == 6 == len(runs)
    points = {1: 4, 2: 8, 4: 16}  # four fifths of 5, 10 and 20 updates
    by_id = {spec.id: spec for spec in runs}
    for arm in ("ar", "card"):
        mine = [task for task in legs if task.id.startswith(f"{arm}-")]
        assert [(task.steps, task.new_steps) for task in mine] == [(4, 4), (8, 4), (16, 8)]
        assert [task.after for task in mine] == [None, mine[0].id, mine[1].id]
        assert len({task.directory for task in mine}) == 1
        for task in mine:
            assert task.config.optimizer.schedule == "constant"
            assert (task.config.train.steps, task.config.data.epochs) == (task.steps, None)
    for task in branches:
        epochs = by_id[task.id].cell.epochs
        assert task.branch.step == points[epochs]
        assert task.new_steps == task.steps - points[epochs]
        assert task.after == task.branch.task
        assert task.config.optimizer.schedule == "wsd"
    whole = sum(spec.tokens for spec in runs)
    assert sum(cost.tokens for cost in found.costs) == (16 + 1 + 2 + 4) * 2 * BATCH * LENGTH < whole
    assert [cost.kind for cost in found.costs] == ["trunk"] * 3 + ["branch"] * 3 + ["trunk"] * 3 + ["branch"] * 3


@pytest.mark.parametrize("samples, point", [(64, 6), (864, 86)])
def test_a_branch_takes_a_fifth_of_its_run_to_the_nearest_update(write_grid, tmp_path, samples, point):
    """8 and 108 updates: 1.6 and 21.6 of them decay, so 2 and 22 do."""
    keys = {"model.length": 4}
    grid = write_grid(schedule="wsd-branches", epochs=[1], unique_tokens=[samples * 4 + 1], overrides=keys)
    runs, tasks, _ = planned(grid, tmp_path)
    assert {spec.steps for spec in runs} == {samples // BATCH}
    assert {task.branch.step for task in tasks if task.branch} == {point}


def test_seeds_and_regularisation_have_trunks_of_their_own(write_grid, tmp_path):
    _, tasks, _ = planned(
        write_grid(schedule="wsd-branches", seed=[1, 2], weight_decay=[0.1, 0.4], epochs=[2]), tmp_path
    )
    assert len({task.directory for task in tasks if task.is_leg}) == 8


def test_the_same_runs_whether_branched_or_whole(write_grid, tmp_path):
    branched, _, _ = planned(write_grid(schedule="wsd-branches", epochs=[2]), tmp_path)
    whole, _, _ = planned(write_grid(schedule="wsd", epochs=[2]), tmp_path)
    assert [spec.id for spec in branched] == [spec.id for spec in whole]


def test_an_impossible_layout_is_refused_before_anything_starts(write_grid, tmp_path):
    with pytest.raises(ConfigurationError, match=r"on 3 ranks: train.global_batch 8 is not divisible"):
        planned(write_grid(ranks=3, overrides={"train.micro_batch": 2}), tmp_path)


def test_the_plan_on_paper(write_grid, tmp_path):
    _, _, found = planned(write_grid(), tmp_path)
    text = plan.table(found, at_once=2)
    assert all(cost.id in text for cost in found.costs)
    assert "4 runs in 4 tasks: 9,600 tokens" in text
    plan.write(found, tmp_path)
    written = json.loads((tmp_path / "plan.json").read_text())
    assert [task["id"] for task in written["tasks"]] == [cost.id for cost in found.costs]
    assert written["total"]["flops"] == found.flops
    with (tmp_path / "plan.csv").open() as file:
        assert [int(row["tokens"]) for row in csv.DictReader(file)] == [cost.tokens for cost in found.costs]


@pytest.mark.parametrize(
    "model, overrides, message",
    [
        (
            {"model.hidden": 48, "model.heads": 3, "model.ffn": 24},
            {"parallel.tensor": 3},
            r"padded vocabulary \d+ is not divisible by parallel\.tensor 3; valid up to it: 1, 2",
        ),
        ({"model.hidden": 16, "model.heads": 2, "model.ffn": 25}, {"parallel.tensor": 2}, "model.ffn"),
        (
            {"model.hidden": 16, "model.heads": 2, "model.ffn": 24, "model.attention_backend": "flex"},
            {},
            "attention_backend is flex",
        ),
    ],
)
def test_what_the_run_would_refuse_the_plan_refuses(write_grid, tmp_path, model, overrides, message):
    grid = write_grid(
        arms={"ar": {"objective.name": "ar"}},
        sizes={"s": {"model.layers": 1, **model}},
        overrides=overrides,
        ranks=overrides.get("parallel.tensor", 1),
    )
    with pytest.raises(ConfigurationError, match=message):
        planned(grid, tmp_path)


def test_a_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be made"):
        plan.prepare_directory(tmp_path / "file" / "study")


PRESETS = sorted((Path(__file__).resolve().parents[2] / "launchers/studies").glob("*.yaml"))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_can_be_planned(preset, tmp_path, monkeypatch):
    """On a corpus that is stated where the preset's own is not built."""
    monkeypatch.chdir(preset.parents[2])
    grid = load(preset)
    stated = grid.corpus or StatedCorpus(vocabulary_size=4096, train_tokens=10**7, validation_tokens=10**5)
    runs = specs(dataclasses.replace(grid, corpus=stated), tmp_path)
    tasks = tasks_of(runs, tmp_path, branching=grid.schedule == "wsd-branches")
    found = plan.plan(grid, runs, tasks, {})
    hours = {
        "cpu-minutes": 0.2,
        "repetition-cpu": 3.0,
        "repetition-cpu-lr": 0.4,
        "card-parts": 0.5,
        "gpu-half-hour": 0.6,
        "gpu-day": 24.0,
    }
    assert 0 < found.device_hours < hours.get(preset.stem, 1e5)
    if preset.stem == "cluster-beyond-1b":
        assert all(cost.parameters > 1e9 for cost in found.costs)
