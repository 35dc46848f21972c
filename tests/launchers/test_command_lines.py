"""--dry-run prints what would run; wrong arguments end with 2 and the usage."""

import os
import shlex
import subprocess

import pytest

from tests.launchers.processes import LAUNCHERS, REPOSITORY, environment

SCRIPTS = ["torchrun_one_node.sh", "torchrun_multi_node.sh", "slurm.sbatch"]
DEFAULTED = {
    "CUDA_DEVICE_MAX_CONNECTIONS": "1",
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",
    "PYTHONFAULTHANDLER": "1",
}


def run(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(LAUNCHERS / script), *arguments],
        cwd=REPOSITORY,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
    )


def command_lines(result: subprocess.CompletedProcess) -> list[tuple[dict[str, str], list[str]]]:
    """Return (variables, command) of each printed line, read as a shell reads it."""
    assert result.returncode == 0, result.stderr
    parsed = []
    for line in result.stdout.splitlines():
        first, *words = shlex.split(line)
        assert first == "env"
        variables = {}
        while "=" in words[0]:
            name, _, variables[name] = words.pop(0).partition("=")
        parsed.append((variables, words))
    return parsed


def test_one_node():
    result = run(
        "torchrun_one_node.sh", "--nproc", "3", "--dry-run", "a b.yaml", "optimizer.betas=[0.9, 0.99]", "--bf16"
    )
    [(variables, command)] = command_lines(result)
    expected = ["torchrun", "--standalone", "--nproc-per-node", "3", "-m", "card_scale.train"]
    assert command == [*expected, "a b.yaml", "optimizer.betas=[0.9, 0.99]", "--bf16"]
    assert variables == DEFAULTED | {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // 3))}


def test_what_the_environment_sets_stays():
    kept = {"OMP_NUM_THREADS": "5", "PYTHONFAULTHANDLER": "", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}
    [(variables, command)] = command_lines(run("torchrun_one_node.sh", "--dry-run", "c.yaml", NPROC="2", **kept))
    assert not kept.keys() & variables.keys()
    assert command[2:4] == ["--nproc-per-node", "2"]


@pytest.mark.parametrize("by_options", [True, False])
def test_multi_node(by_options):
    options = ["--nnodes", "4", "--head", "node-1:29500", "--job-id", "17", "--nproc", "8"]
    variables = {"NNODES": "4", "HEAD": "node-1:29500", "JOB_ID": "17", "NPROC": "8"}
    arguments, variables = (options, {}) if by_options else ([], variables)
    [(_, command)] = command_lines(run("torchrun_multi_node.sh", *arguments, "--dry-run", "c.yaml", **variables))
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "node-1:29500", "--rdzv-id", "17"]
    expected = ["torchrun", "--nnodes", "4", *rendezvous, "--nproc-per-node", "8", "-m", "card_scale.train", "c.yaml"]
    assert command == expected


def test_slurm_prints_the_step_and_what_runs_on_each_node():
    job = {
        "SLURM_JOB_ID": "1234567",
        "SLURM_JOB_NUM_NODES": "16",
        "SLURM_CPUS_ON_NODE": "96",
        "SLURM_GPUS_ON_NODE": "8",
    }
    [(_, step), (_, node)] = command_lines(run("slurm.sbatch", "--dry-run", "c.yaml", "run.seed=2", **job))
    assert step[0] == "srun"
    assert {"--ntasks-per-node=1", "--cpus-per-task=96", "--kill-on-bad-exit=0"} <= set(step)
    assert step[-2:] == ["c.yaml", "run.seed=2"]
    # The port derives from the job's id, and the id tells jobs apart at the rendezvous.
    head = node[node.index("--rdzv-endpoint") + 1]
    assert head.endswith(f":{20000 + 1234567 % 10000}")
    assert node[node.index("--rdzv-id") + 1] == "1234567"
    assert node[node.index("--nnodes") + 1] == "16"
    assert node[node.index("--nproc-per-node") + 1] == "8"
    assert node[-4:] == ["-m", "card_scale.train", "c.yaml", "run.seed=2"]


def test_slurm_dry_run_outside_of_a_job():
    assert len(command_lines(run("slurm.sbatch", "--dry-run", "c.yaml", NPROC="8"))) == 2


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script):
    result = run(script, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith("usage: ")


@pytest.mark.parametrize(
    "script, arguments, variables, complaint",
    [
        ("torchrun_one_node.sh", [], {}, "CONFIG is missing"),
        ("torchrun_one_node.sh", ["--procs", "2", "c.yaml"], {}, "unknown option --procs"),
        ("torchrun_one_node.sh", ["--nproc"], {}, "--nproc needs a value"),
        ("torchrun_one_node.sh", ["--nproc", "two", "c.yaml"], {}, "'two'"),
        ("torchrun_one_node.sh", ["--nproc", "0", "c.yaml"], {}, "'0'"),
        ("torchrun_multi_node.sh", [], {}, "CONFIG is missing"),
        ("torchrun_multi_node.sh", ["c.yaml"], {}, "NNODES"),
        ("torchrun_multi_node.sh", ["c.yaml"], {"NNODES": "2"}, "HEAD"),
        ("torchrun_multi_node.sh", ["c.yaml"], {"NNODES": "2", "HEAD": "host"}, "'host'; it must be HOST:PORT"),
        ("torchrun_multi_node.sh", ["c.yaml"], {"NNODES": "2", "HEAD": "host:1"}, "JOB_ID"),
        ("torchrun_multi_node.sh", ["--nnodes", "-1", "c.yaml"], {}, "'-1'"),
        ("slurm.sbatch", [], {}, "CONFIG is missing"),
        ("slurm.sbatch", ["--nodes=2", "c.yaml"], {}, "unknown option --nodes=2"),
        ("slurm.sbatch", ["c.yaml"], {}, "submit it with sbatch"),
    ],
)
def test_wrong_arguments(script, arguments, variables, complaint):
    result = run(script, *arguments, **variables)
    assert result.returncode == 2
    assert complaint in result.stderr
    assert "usage: " in result.stderr
    assert result.stdout == ""


def test_no_gpu_and_no_number_of_processes():
    result = run("torchrun_one_node.sh", "--dry-run", "c.yaml", CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 2
    assert "NPROC" in result.stderr


def test_a_batch_script_submitted_from_elsewhere_says_so(tmp_path):
    result = run("slurm.sbatch", "c.yaml", SLURM_SUBMIT_DIR=str(tmp_path))
    assert result.returncode == 2
    assert str(tmp_path) in result.stderr
