"""Which rank a process is, from its environment alone."""

import pytest

from card_scale.distributed.launched_as import first_host, is_restart, job_of, rank_variables
from card_scale.errors import ConfigurationError

TORCHRUN = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
STEP = {
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[017-018]",
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_ID": "2",
}


def test_torchrun_has_said_it():
    assert rank_variables(TORCHRUN) == {}
    assert rank_variables(TORCHRUN | STEP) == {}, "torchrun inside a step of srun"


def test_a_process_of_its_own_is_alone():
    assert rank_variables({}) == {}
    assert rank_variables({"WORLD_SIZE": "1"}) == {}
    # A batch script has these, and one task of srun.
    assert rank_variables({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"}) == {}
    assert rank_variables(STEP | {"SLURM_STEP_NUM_TASKS": "1"}) == {}


def test_the_tasks_of_a_step_are_ranks():
    found = rank_variables(STEP)
    port = found.pop("MASTER_PORT")
    assert found == {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "gpu017"}
    assert 20_000 <= int(port) < 30_000
    assert rank_variables(STEP | {"SLURM_PROCID": "0"})["MASTER_PORT"] == port
    assert rank_variables(STEP | {"SLURM_STEP_ID": "3"})["MASTER_PORT"] != port
    # With --gpus-per-task=1 each task sees one device, its number 0.
    assert rank_variables(STEP | {"CUDA_VISIBLE_DEVICES": "1"})["LOCAL_RANK"] == "0"
    assert rank_variables(STEP | {"CUDA_VISIBLE_DEVICES": "0,1"})["LOCAL_RANK"] == "1"
    own = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "5"}
    assert rank_variables(STEP | own) | own == rank_variables(STEP | own)


@pytest.mark.parametrize(
    "environment, message",
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK is not set"),
        ({"WORLD_SIZE": "2", "SLURM_PROCID": "1"}, "WORLD_SIZE is 2, but RANK is not set"),
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE is 'abc'; valid is an integer of at least 1"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"RANK": "0"}, "RANK is 0, but WORLD_SIZE, MASTER_ADDR, MASTER_PORT is not set"),
        (TORCHRUN | {"RANK": "2"}, "RANK is 2; valid is from 0 to WORLD_SIZE - 1 = 1"),
        (TORCHRUN | {"RANK": "-1"}, "RANK is '-1'"),
        (TORCHRUN | {"MASTER_PORT": "x"}, "MASTER_PORT is 'x'"),
        (TORCHRUN | {"LOCAL_RANK": "x"}, "LOCAL_RANK is 'x'"),
        (STEP | {"SLURM_PROCID": "4"}, "SLURM_PROCID is 4; valid is from 0 to SLURM_STEP_NUM_TASKS - 1 = 3"),
        (STEP | {"SLURM_LOCALID": "x"}, "SLURM_LOCALID is 'x'"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_STEP_NUM_TASKS is 2, but SLURM_PROCID, SLURM_LOCALID"),
    ],
)
def test_half_a_world_is_refused(environment, message):
    with pytest.raises(ConfigurationError, match=message):
        rank_variables(environment)


@pytest.mark.parametrize(
    "node_list, host",
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[1-3]", "n1"),
        ("n[001-003,7],login", "n001"),
        ("n[7,9]", "n7"),
        ("rack[2-3]n[01-08]", "rack2n01"),
        ("a.example-site.org,b", "a.example-site.org"),
    ],
)
def test_the_first_host_of_a_list(node_list, host):
    assert first_host(node_list) == host


def test_jobs_are_told_apart_by_what_survives_a_restart():
    assert job_of({}) is None
    assert job_of({"TORCHELASTIC_RUN_ID": "none"}) is None
    assert job_of({"TORCHELASTIC_RUN_ID": "a7", "SLURM_JOB_ID": "5", "SLURM_STEP_ID": "0"}) == "torchrun a7"
    assert job_of({"SLURM_JOB_ID": "5", "SLURM_STEP_ID": "0"}) == "Slurm 5.0"
    assert not is_restart({})
    assert not is_restart({"SLURM_RESTART_COUNT": "0", "TORCHELASTIC_RESTART_COUNT": ""})
    assert is_restart({"SLURM_RESTART_COUNT": "1"})
    assert is_restart({"TORCHELASTIC_RESTART_COUNT": "2"})
