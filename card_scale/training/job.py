"""The parts of a training job, opened from a configuration in the order in which they can fail cheaply."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from card_scale.checkpoint import directory as directories
from card_scale.checkpoint.format import CheckpointManifest
from card_scale.checkpoint.load import load
from card_scale.checkpoint.save import save
from card_scale.config import Config
from card_scale.data.digest import batch_digest
from card_scale.data.loader import Batch, GlobalBatchLoader, ValidationBatches
from card_scale.data.stream import PackedStream
from card_scale.data.tokenizer import MASK_ID
from card_scale.distributed import process_groups
from card_scale.engine.base import ShardingEngine
from card_scale.environment import library_versions
from card_scale.errors import CheckpointError, DataError
from card_scale.model.gpt import Vocabulary
from card_scale.objectives import BlockDiffusionObjective, Objective, create_objective
from card_scale.training.run_directory import RunDirectory


@dataclasses.dataclass(frozen=True)
class Data:
    """The training and validation streams of a run."""

    train: PackedStream
    validation: PackedStream

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.train.vocabulary_size, MASK_ID)

    @property
    def tokenizer_sha256(self) -> str:
        return self.train.manifest.tokenizer.sha256

    def describe_held_out(self) -> str:
        """Say whether the validation documents were compared with the training documents."""
        if not self.validation.manifest.held_out_from(self.train.manifest):
            return "held-out documents: never compared with the training documents (tools/data.py decontaminate)"
        record = self.validation.manifest.decontamination
        assert record is not None  # held_out_from
        return f"held-out documents: decontaminated, {record.excluded_documents} left out"


def open_data(config: Config) -> Data:
    """Open both streams; DataError for anything missing, damaged or made with different tokenizers."""
    train = PackedStream(config.data.path, "train", config.run.seed, config.model.length, config.data.unique_tokens)
    held_out = config.data.validation or config.data.path
    validation = PackedStream(held_out, "validation", config.run.seed, config.model.length)
    if validation.manifest.tokenizer.sha256 != train.manifest.tokenizer.sha256:
        raise DataError(
            f"data.validation {held_out} was made with another tokenizer "
            f"({validation.manifest.tokenizer.sha256[:12]}) than data.path {config.data.path} "
            f"({train.manifest.tokenizer.sha256[:12]})"
        )
    return Data(train, validation)


def objective_of(config: Config) -> Objective:
    """Return the configured objective."""
    return create_objective(**dataclasses.asdict(config.objective), mask_id=MASK_ID)


def open_loader(config: Config, data: Data) -> GlobalBatchLoader:
    """Return this rank's training batches."""
    return GlobalBatchLoader(
        data.train,
        global_batch=config.train.global_batch,
        micro_batch=config.train.micro_batch,
        data_parallel_rank=process_groups.data_rank(),
        data_parallel_size=dist.get_world_size(process_groups.data_group()),
        seed=config.run.seed,
        reshuffle=config.data.reshuffle,
    )


def open_validation(config: Config, data: Data) -> ValidationBatches:
    """Return this rank's validation batches."""
    return _evaluation_batches(config, data.validation, config.data.validation_samples or None)


def open_train_samples(config: Config, data: Data) -> ValidationBatches:
    """Return this rank's share of the first ``data.train_samples`` training samples, for evaluation."""
    return _evaluation_batches(config, data.train, config.data.train_samples)


def _evaluation_batches(config: Config, stream: PackedStream, samples: int | None) -> ValidationBatches:
    return ValidationBatches(
        stream,
        global_batch=config.train.global_batch,
        micro_batch=config.train.micro_batch,
        data_parallel_rank=process_groups.data_rank(),
        data_parallel_size=dist.get_world_size(process_groups.data_group()),
        samples=samples,
    )


class Start(NamedTuple):
    """Where a run begins."""

    done: int | None
    """Updates already made, None for a new run."""
    objective: Objective
    """The configured objective, with what the run has found for it."""
    opening: str
    """What to tell the user."""


def resume(engine: ShardingEngine, directory: RunDirectory, data: Data, objective: Objective) -> Start:
    """Load the run's latest complete checkpoint, if there is one. Collective."""
    # One rank decides, so that a file system that shows ranks different states cannot split the job.
    found: list = [None]
    if dist.get_rank() == 0:
        try:
            latest = directories.find_latest(directory.checkpoints)
            found = [latest and (*latest, directories.read_state(latest[0]))]
        except CheckpointError as error:
            found = [error]
    dist.broadcast_object_list(found, src=0)
    if isinstance(found[0], CheckpointError):
        raise found[0]
    if found[0] is None:
        return Start(None, objective, f"starting a new run in {directory.path}")
    path, manifest, passed_over, state = found[0]
    if manifest.tokenizer_sha256 != data.tokenizer_sha256:
        raise DataError(
            f"checkpoint {path} was trained with tokenizer {manifest.tokenizer_sha256[:12]}, the data has "
            f"{data.tokenizer_sha256[:12]}"
        )
    if manifest.data_digest != data.train.manifest.digest:
        raise DataError(
            f"checkpoint {path} was trained on data {manifest.data_digest}, data.path holds "
            f"{data.train.manifest.digest}: other documents, or others left out of validation since "
            "(tools/data.py decontaminate). Train on the former data, or start a new run.dir"
        )
    load(engine, path, manifest)
    problems = "".join(f"\nwarning: passed over: {problem}" for problem in passed_over)
    opening = f"resuming from {path} ({manifest.layout}, {manifest.engine}){problems}"
    return Start(manifest.step, adopt_interval(objective, state), opening)


def adopt_interval(objective: Objective, found: Mapping[str, Any]) -> Objective:
    """Return the objective with the interval of mask rates that an evaluation found, or a checkpoint kept.

    ``found`` holds ``bd3lm/min_mask`` and ``bd3lm/max_mask``; they are looked at only if the objective searches.
    """
    if not (isinstance(objective, BlockDiffusionObjective) and objective.search_interval):
        return objective
    return dataclasses.replace(objective, min_mask=found["bd3lm/min_mask"], max_mask=found["bd3lm/max_mask"])


def save_checkpoint(
    engine: ShardingEngine,
    objective: Objective,
    directory: RunDirectory,
    config: Config,
    data: Data,
    step: int,
    layout: str,
) -> Path:
    """Save after ``step`` updates. Collective."""
    description = CheckpointManifest(
        step=step,
        state_keys=list(engine.state_keys()),
        layout=layout,
        engine=config.parallel.engine,
        tokenizer_sha256=data.tokenizer_sha256,
        data_digest=data.train.manifest.digest,
        versions=library_versions(),
        tensors={},
        files={},
    )
    samples = step * config.train.global_batch
    state = {
        "step": step,
        "samples": samples,
        "tokens": samples * config.model.length,
        "epoch": samples // data.train.sample_count,
        "cursor": samples % data.train.sample_count,
        "seed": config.run.seed,
    }
    if isinstance(objective, BlockDiffusionObjective):
        state |= {"bd3lm/min_mask": objective.min_mask, "bd3lm/max_mask": objective.max_mask}
    return save(engine, directory.checkpoints, description, state, config.to_yaml(), data.train.tokenizer_path)


def check_same_batch(batch: Batch, step: int) -> None:
    """Raise DataError if the ranks of this tensor x pipeline group hold different batches. Collective."""
    group = process_groups.model_group()
    mine = torch.tensor([batch_digest(batch)], dtype=torch.int64)
    digests = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(digests, mine, group=group)
    if any(digest != mine for digest in digests):
        ranks = dist.get_process_group_ranks(group)
        seen = ", ".join(f"rank {rank}: {digest.item():016x}" for rank, digest in zip(ranks, digests, strict=True))
        raise DataError(f"step {step}: ranks of one tensor x pipeline group read different batches ({seen})")


def agree_to_stop(requested: bool) -> bool:
    """Return whether any rank was asked to stop, the same answer on every rank. Collective, without the device."""
    flag = torch.tensor([int(requested)])
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)
