"""The batch script on a real Slurm: two nodes of two ranks train what one machine trains; stops and refusals."""

import json
import os
import re
import shutil
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from card_scale.corpus.build import BuildSettings, build_dataset
from card_scale.corpus.sources import InputSettings
from card_scale.corpus.tokenizer_training import TokenizerSettings, make_tokenizer
from tests.launchers.processes import REPOSITORY, Processes, environment

CLUSTER = str(Path(__file__).with_name("slurm_cluster.sh"))
NEEDED = ["munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "sinfo"]
MISSING = [name for name in NEEDED if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
STEPS = 5

pytestmark = pytest.mark.skipif(
    bool(MISSING),
    reason=f"no Slurm here: {', '.join(MISSING)} not installed (Debian: apt-get install slurm-wlm munge)",
)


class Cluster:
    """A running cluster of two nodes; jobs are submitted as a user does, from the repository's directory."""

    def __init__(self, processes: Processes, directory: Path):
        self.processes = processes
        self.directory = directory
        self.variables = environment(SLURM_CONF=str(directory / "slurm.conf"), NPROC="2", OMP_NUM_THREADS="1")

    def run(self, *command: str) -> str:
        """Return the output of a command that takes seconds and must succeed."""
        process = self.processes.start(list(command), REPOSITORY, self.variables)
        assert self.processes.wait(process) == 0, self.processes.text(process)
        return self.processes.text(process)

    def submit(self, *arguments: str) -> str:
        """Submit launchers/slurm.sbatch; return the job's id."""
        output = f"--output={self.directory}/job-%j.out"
        # The nodes have no GPUs for Slurm to give.
        options = ["--parsable", "--nodes=2", "--gpus-per-node=0", output]
        return self.run("sbatch", *options, "launchers/slurm.sbatch", *arguments).strip()

    def output(self, job: str) -> str:
        """Return what the job has written so far."""
        file = self.directory / f"job-{job}.out"
        return file.read_text() if file.exists() else ""

    def exit_code(self, job: str) -> int | None:
        """Return a job's exit code, or None while it waits or runs."""
        described = self.run("scontrol", "show", "job", "--oneliner", job)
        state = re.search(r"JobState=(\w+)", described).group(1)
        if state in ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING"):
            return None
        code, killed_by = re.search(r" ExitCode=(\d+):(\d+)", described).groups()
        assert killed_by == "0", described
        return int(code)

    def wait(self, job: str, seconds: float = 300.0) -> int:
        """Return a job's exit code once it has ended; AssertionError with its output past the deadline."""
        end = time.monotonic() + seconds
        while (code := self.exit_code(job)) is None:
            assert time.monotonic() < end, f"job {job} runs on after {seconds:.0f} s:\n{self.output(job)}"
            time.sleep(0.5)
        return code


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("slurm")
    processes = Processes(directory)
    cluster = Cluster(processes, directory)
    try:
        cluster.run(CLUSTER, "start", str(directory), *map(str, free_ports(3)))
        yield cluster
    finally:
        subprocess.run([CLUSTER, "stop", str(directory)], timeout=30)
        processes.end()


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """A CARD run for four CPU ranks, tensor 2 x data 2 under ZeRO-3, on real text."""
    directory = tmp_path_factory.mktemp("data")
    inputs = InputSettings((str(Path(sysconfig.get_paths()["stdlib"]) / "asyncio"),), patterns=("*.py",))
    tokenizer = directory / "tokenizer.model"
    make_tokenizer(TokenizerSettings(inputs, vocabulary_size=500, model_type="bpe", sample_bytes=200_000), tokenizer)
    build_dataset(BuildSettings(inputs, validation_fraction=0.1), tokenizer, directory / "tokens", workers=1)
    tree = {
        "model": {"layers": 2, "hidden": 32, "heads": 4, "ffn": 64, "length": 32},
        "data": {"path": str(directory / "tokens"), "validation_samples": 8},
        "parallel": {"tensor": 2, "deepspeed": "ds_configs/zero3.json"},
        "optimizer": {"lr": 1e-3, "schedule": "constant"},
        "train": {"steps": 1_000_000, "global_batch": 8, "micro_batch": 2, "log_every": 1},
    }
    path = directory / "config.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def training_lines(run: Path) -> list[dict]:
    """Return the complete training lines of metrics.jsonl."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [record for line in lines if line.endswith("\n") and "loss" in (record := json.loads(line))]


def test_two_nodes_train_what_one_machine_trains_and_stop_when_asked(cluster, config, tmp_path):
    job = cluster.submit(str(config), f"run.dir={tmp_path}/slurm")
    end = time.monotonic() + 300
    while len(training_lines(tmp_path / "slurm")) < STEPS:
        assert cluster.exit_code(job) is None, cluster.output(job)
        assert time.monotonic() < end, cluster.output(job)
        time.sleep(0.5)
    # What Slurm itself sends to the batch script before the time limit.
    cluster.run("scancel", "--signal=USR1", "--batch", job)
    assert cluster.wait(job) == 75, cluster.output(job)
    assert json.loads((tmp_path / "slurm/exit.json").read_text())["code"] == 75
    checkpoints = tmp_path / "slurm/checkpoints"
    latest = int((checkpoints / "latest_checkpointed_iteration.txt").read_text())
    assert latest >= STEPS
    assert (checkpoints / f"iter_{latest:07d}/manifest.json").is_file()

    arguments = [str(config), f"run.dir={tmp_path}/torchrun", f"train.steps={STEPS}"]
    one_node = ["launchers/torchrun_one_node.sh", "--nproc", "4", *arguments]
    script = cluster.processes.start(one_node, REPOSITORY, cluster.variables)
    assert cluster.processes.wait(script, 300) == 0, cluster.processes.text(script)

    expected, seen = training_lines(tmp_path / "torchrun"), training_lines(tmp_path / "slurm")[:STEPS]
    for key in ("step", "tokens", "samples"):
        assert [line[key] for line in seen] == [line[key] for line in expected]
    for key in ("loss", "grad_norm"):
        assert [line[key] for line in seen] == pytest.approx([line[key] for line in expected], rel=1e-5)


def test_a_wrong_configuration_ends_the_job_with_3(cluster, config, tmp_path):
    job = cluster.submit(str(config), f"run.dir={tmp_path}/run", "model.heads=5")
    assert cluster.wait(job) == 3, cluster.output(job)
    assert "model.hidden 32 is not divisible by model.heads 5" in cluster.output(job)
