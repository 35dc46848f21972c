"""What the ranks of a run agree on between two updates."""

import contextlib
from pathlib import Path

import torch
import torch.distributed as dist

from card_scale.checkpoint import verify
from card_scale.checkpoint.format import CheckpointManifest
from card_scale.config import Config
from card_scale.data import ledger as ledgers
from card_scale.data.digest import batch_digest
from card_scale.data.samples import Samples
from card_scale.distributed import process_groups
from card_scale.errors import ConfigurationError, DataError
from card_scale.training import resume_point
from card_scale.training.resume_point import ResumePoint
from card_scale.training.run_directory import RunDirectory
from card_scale.training.run_lock import RunLock
from card_scale.training.watchdog import Peer


def any_is_asked_to_stop(reason: str | None) -> bool:
    """Return whether any rank was asked to stop, the same answer on every rank. Collective, without the device."""
    flag = torch.tensor([int(reason is not None)])
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)


def agree_to_stop(reason: str | None) -> str | None:
    """Return why to stop, None where no rank was asked to: the first rank's reason, the same answer on every rank.

    Collective, without the device.
    """
    if not any_is_asked_to_stop(reason):
        return None
    reasons: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(reasons, reason)
    return next(found for found in reasons if found is not None)


def agree_on_lock(lock: RunLock, held: contextlib.ExitStack) -> RunLock | None:
    """Have rank 0 take the run directory's lock until ``held`` ends; return it there, None on the others. Collective.

    Raises ForeignRunError on all ranks where it is refused: the others would wait for rank 0, and then say in the other
    job's directory that it was lost. ConfigurationError where the file system refuses.
    """

    def take() -> None:
        try:
            held.enter_context(lock)
        except OSError as error:
            raise ConfigurationError(f"run.dir {lock.path.parent} cannot be used: {error}") from error

    process_groups.by_main_rank(take)
    return lock if dist.get_rank() == 0 else None


def all_peers() -> list[Peer]:
    """Return where the ranks run, in their order. Collective."""
    found: list[Peer | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, Peer.this_process())
    return [peer for peer in found if peer is not None]


def begin_anew(directory: RunDirectory, config: Config, job: str | None, is_restart: bool) -> None:
    """Set aside what an earlier run has left in the run directory, and say where; once a job. Collective.

    Args:
        directory: of the run.
        config: of this one.
        job: what tells one job from another through restarts, None where nothing does.
        is_restart: whether it is one, as far as this rank's launcher knows; asked of rank 0, and without a ``job``.

    Raises:
        ForeignRunError: on all ranks: a restart finds another run there.
    """

    def begin() -> None:
        if directory.was_begun_anew_by(job) if job is not None else is_restart:
            directory.check_same_run(config)
            return
        aside = directory.set_aside()
        directory.note_begun_anew(job)
        if aside is not None:
            print(f"beginning anew: the run that was in {directory.path} is in {aside}", flush=True)

    process_groups.by_main_rank(begin)


def check_same_samples(samples: Samples, step: int) -> None:
    """Raise DataError if the ranks of this tensor x pipeline group hold different samples. Collective."""
    group = process_groups.model_group()
    mine = torch.tensor([batch_digest(samples.tensors())], dtype=torch.int64)
    digests = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(digests, mine, group=group)
    if any(digest != mine for digest in digests):
        ranks = dist.get_process_group_ranks(group)
        seen = ", ".join(f"rank {rank}: {digest.item():016x}" for rank, digest in zip(ranks, digests, strict=True))
        raise DataError(f"step {step}: ranks of one tensor x pipeline group read different batches ({seen})")


def agree_on_attempt(ledger: Path) -> Path:
    """Return the directory in a run's ledger for this start of the command, which rank 0 makes. Collective."""

    def make() -> Path:
        number = max(ledgers.attempt_numbers(ledger), default=0) + 1
        attempt = ledger / ledgers.attempt_name(number)
        attempt.mkdir(parents=True)
        return attempt

    return process_groups.by_main_rank(make)


def agree_on_resume_point(checkpoints: Path) -> ResumePoint | None:
    """Return the checkpoint that all ranks go on from, None where there is none: the latest whose files are, by their
    hashes, what was written. Collective.

    Raises CheckpointError, on all ranks, where there are checkpoints but none is sound.
    """
    damaged: dict[int, str] = {}
    while (point := process_groups.by_main_rank(lambda: resume_point.find(checkpoints, damaged))) is not None:
        problems = agree_on_damage(point.path, point.manifest)
        if not problems:
            break
        damaged[point.manifest.step] = "; ".join(problems)
    return point


def agree_on_evaluated(directory: RunDirectory, step: int) -> bool:
    """Return whether an evaluation after ``step`` updates is recorded, by what rank 0 sees. Collective."""
    return process_groups.by_main_rank(lambda: directory.is_evaluated(step))


def agree_on_damage(checkpoint: Path, manifest: CheckpointManifest) -> list[str]:
    """Return what is wrong with the files of a checkpoint by their hashes, the same on every rank; each looks at some
    of them. Collective."""
    files, size = manifest.files, dist.get_world_size()
    mine = {name: files[name] for name in verify.share(files, dist.get_rank(), size)}
    found: list[list[str]] = [[] for _ in range(size)]
    dist.all_gather_object(found, verify.damaged_files(checkpoint, mine))
    return [problem for of_rank in found for problem in of_rank]
