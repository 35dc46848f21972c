"""What a plan imports: it is made where no training library need load."""

from tests.laws.test_imports import loaded_of

LIGHT = ["grid", "spec", "tasks", "datasets", "branches", "state", "task_process", "slurm", "table_files"]


def test_grids_runs_and_tasks_need_no_training_library():
    heavy = ["torch", "megatron", "deepspeed", "scipy", "matplotlib"]
    assert loaded_of([f"card_scale.studies.{name}" for name in LIGHT], heavy) == []
