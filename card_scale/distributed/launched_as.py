"""Which rank this process is, and of which job: as torchrun says, or as srun where it started the ranks itself.

Pure: reads a mapping of environment variables, changes nothing.
"""

import re
from collections.abc import Mapping

from card_scale.errors import ConfigurationError

FIRST_PORT = 20_000
PORTS = 10_000
"""Rendezvous of ranks that srun starts: a port by job and step, so that two jobs on one node do not meet."""


def rank_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what has to be set of RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

    Nothing where torchrun has set them, or where this process is alone. Inside a step of srun with several tasks, and
    without torchrun, the tasks are the ranks.

    Raises:
        ConfigurationError: half of the variables, or values that are no ranks. Without this check each process would
            take itself for the only one, and all of them would train in one directory.
    """
    if "RANK" in environment:
        _check(environment, ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
        return {}
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if _number("SLURM_STEP_NUM_TASKS", tasks, 1) > 1:
        return _of_step(environment)
    if _number("WORLD_SIZE", environment.get("WORLD_SIZE", "1"), 1) > 1:
        raise ConfigurationError(
            f"WORLD_SIZE is {environment['WORLD_SIZE']}, but RANK is not set: this process would train alone beside "
            "others. Start the ranks with torchrun or srun, or unset WORLD_SIZE"
        )
    return {}


def is_first_of_node(environment: Mapping[str, str]) -> bool:
    """Whether no other rank of this machine has a lower number: it speaks for what all of the machine's meet."""
    local_rank = environment.get("LOCAL_RANK", environment.get("RANK", "0"))
    # A task of srun that sees a device of its own has the local rank 0, like the others of its machine.
    return local_rank == "0" and environment.get("SLURM_LOCALID", "0") == "0"


def _check(environment: Mapping[str, str], needed: tuple[str, ...]) -> None:
    missing = [name for name in needed if name not in environment]
    if missing:
        raise ConfigurationError(
            f"RANK is {environment['RANK']}, but {', '.join(missing)} is not set; start the ranks with torchrun"
        )
    size = _number("WORLD_SIZE", environment["WORLD_SIZE"], 1)
    rank = _number("RANK", environment["RANK"], 0)
    if rank >= size:
        raise ConfigurationError(f"RANK is {rank}; valid is from 0 to WORLD_SIZE - 1 = {size - 1}")
    _number("LOCAL_RANK", environment.get("LOCAL_RANK", "0"), 0)
    _number("MASTER_PORT", environment["MASTER_PORT"], 1)


def _number(name: str, text: str, low: int) -> int:
    if not text.isdecimal() or int(text) < low:
        raise ConfigurationError(f"environment variable {name} is {text!r}; valid is an integer of at least {low}")
    return int(text)


def _of_step(environment: Mapping[str, str]) -> dict[str, str]:
    """The ranks of a step of srun."""
    needed = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID", "SLURM_STEP_ID")
    missing = [name for name in needed if name not in environment]
    if missing:
        raise ConfigurationError(
            f"SLURM_STEP_NUM_TASKS is {environment['SLURM_STEP_NUM_TASKS']}, but {', '.join(missing)} is not set; "
            "start the ranks with srun or torchrun"
        )
    job, step, rank, local_rank = (
        _number(name, environment[name], 0)
        for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_PROCID", "SLURM_LOCALID")
    )
    size = int(environment["SLURM_STEP_NUM_TASKS"])
    if rank >= size:
        raise ConfigurationError(f"SLURM_PROCID is {rank}; valid is from 0 to SLURM_STEP_NUM_TASKS - 1 = {size - 1}")
    # With --gpus-per-task=1 each task sees a device of its own, whose number is 0.
    sees_one_device = len(environment.get("CUDA_VISIBLE_DEVICES", "").split(",")) == 1
    own_device = sees_one_device and environment.get("CUDA_VISIBLE_DEVICES")
    found = {
        "RANK": str(rank),
        "LOCAL_RANK": "0" if own_device else str(local_rank),
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "MASTER_ADDR": environment.get("MASTER_ADDR", first_host(environment["SLURM_STEP_NODELIST"])),
        "MASTER_PORT": environment.get("MASTER_PORT", str(FIRST_PORT + (job * 31 + step) % PORTS)),
    }
    _check(found, ())
    return found


def first_host(node_list: str) -> str:
    """Return the first name of a list as Slurm writes it: ``n[001-003,7],login`` → ``n001``."""
    first = re.split(r",(?![^\[]*\])", node_list, maxsplit=1)[0]
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first)


def job_of(environment: Mapping[str, str]) -> str | None:
    """Return what tells one job from another through its restarts, None where nothing does."""
    torchrun = environment.get("TORCHELASTIC_RUN_ID", "none")
    if torchrun != "none":
        return f"torchrun {torchrun}"
    if "SLURM_JOB_ID" in environment and "SLURM_STEP_ID" in environment:
        return f"Slurm {environment['SLURM_JOB_ID']}.{environment['SLURM_STEP_ID']}"
    return None


def is_restart(environment: Mapping[str, str]) -> bool:
    """Return whether Slurm or torchrun starts the command again."""
    return any(int(environment.get(name) or 0) for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))
