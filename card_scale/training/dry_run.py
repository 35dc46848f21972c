"""``--dry-run``: check everything a run needs and say what it would be, without starting it."""

import os
import time
from typing import NamedTuple

from card_scale import faults
from card_scale.config import Config
from card_scale.cost.flops import flops_per_token
from card_scale.cost.memory import checkpoint_bytes
from card_scale.cost.parameters import parameter_counts
from card_scale.distributed.launched_as import rank_variables
from card_scale.distributed.parallel_dims import ParallelDims
from card_scale.model.vocabulary import Vocabulary
from card_scale.training import initial_weights, memory_fit, preflight, resume_point, run_data, steps
from card_scale.training.resume_point import ResumePoint
from card_scale.training.run_data import RunData
from card_scale.training.run_directory import RunDirectory
from card_scale.training.run_lock import RunLock
from card_scale.training.stop import time_limit
from card_scale.units import duration
from card_scale.versions import check_versions


class Assumptions(NamedTuple):
    """What a dry run is told beside the configuration."""

    ranks: int | None = None
    """Of the run; by default those of the job that this process is of, or the fewest that hold the layout."""
    from_scratch: bool = False
    """Whether the run would set aside what its directory holds."""
    device_gib: float | None = None
    """Memory of a device; by default this machine's."""
    tokens_per_second: float | None = None
    """Of all ranks together."""
    vocabulary_size: int | None = None
    """Pieces of a tokenizer: the run is looked at without a dataset."""


def dry_run(config: Config, assumed: Assumptions) -> list[str]:
    """Return what the run would be, line by line: whether it fits, how long it takes and how often it repeats its data
    first.

    Raises:
        CardScaleError: what the run would raise before its process groups form, and of its checkpoints what needs no
            engine.
    """
    check_versions()
    faults.check()
    launched = {**os.environ, **rank_variables(os.environ)}
    fewest = config.parallel.tensor * config.parallel.pipeline
    ranks = assumed.ranks or int(launched.get("WORLD_SIZE", fewest))
    time_limit(config.run.max_hours, config.run.stop_before_end, os.environ, time.time(), time.monotonic())
    dims = preflight.check(config, ranks)
    directory = RunDirectory(config.run.dir)
    if not assumed.from_scratch:
        directory.check_same_run(config)
    directory.check_usable()
    RunLock(directory.path).check_free()
    memory = memory_fit.memory_of_a_rank(dims.world_size, assumed.device_gib)
    if assumed.vocabulary_size is not None:
        vocabulary = Vocabulary(assumed.vocabulary_size, mask_id=0)
        vocabulary.check_divisible(config.parallel.tensor)
        return _without_data(config, dims, vocabulary, memory, assumed)
    data = run_data.open_data(config)
    point = None if assumed.from_scratch else resume_point.find(directory.checkpoints)
    begin = _begin(config, directory, data, point, from_scratch=assumed.from_scratch)
    count = steps.total_steps(config, data.train.sample_count)
    return [
        *memory_fit.verdict(config, dims.world_size, data.vocabulary.padded, memory),
        _duration(config, count, assumed, point),
        _epochs(config, count, data),
        *steps.warnings(config, count, data.train.sample_count),
        begin,
        *_layout(config, dims, data.vocabulary, memory),
        data.describe_validation(config.data.validation_samples),
        data.describe_held_out(),
        _work(config, count, data.vocabulary),
    ]


def _without_data(
    config: Config, dims: ParallelDims, vocabulary: Vocabulary, memory: memory_fit.Memory, assumed: Assumptions
) -> list[str]:
    lines = memory_fit.verdict(config, dims.world_size, vocabulary.padded, memory)
    count = config.train.steps
    if count is not None:
        lines += [_duration(config, count, assumed), *steps.warnings(config, count)]
    lines += _layout(config, dims, vocabulary, memory)
    if count is not None:
        lines += [_work(config, count, vocabulary)]
    return [*lines, "data: not looked at (--vocabulary-size)"]


def _begin(
    config: Config, directory: RunDirectory, data: RunData, point: ResumePoint | None, *, from_scratch: bool
) -> str:
    """Say where the run would begin. Raises where it could not."""
    if point is not None:
        resume_point.check_same_data(point, data)
        return f"would resume from {point.describe()}"
    if not from_scratch:
        directory.check_nothing_saved()
    initial_weights.find(config, data)
    begun_from = f" from the weights of {config.run.init_from}" if config.run.init_from else ""
    aside = ", after setting aside what is there" if from_scratch else ""
    return f"would start a new run in {config.run.dir}{begun_from}{aside}"


def _duration(config: Config, count: int, assumed: Assumptions, point: ResumePoint | None = None) -> str:
    if assumed.tokens_per_second is None:
        return "time: give the speed of all ranks with --tokens-per-second N (a run logs its own)"
    left = count if point is None else max(0, count - point.manifest.step)
    tokens = left * config.train.global_batch * config.model.length
    of_them = "" if point is None else f" for the {left:,} steps left"
    return (
        f"time: {duration(tokens / assumed.tokens_per_second)} at {assumed.tokens_per_second:,.0f} tokens/s{of_them}; "
        "evaluations and saving are not in it"
    )


def _epochs(config: Config, count: int, data: RunData) -> str:
    held = data.train
    epochs = count * config.train.global_batch / held.sample_count
    return f"epochs: {epochs:.2f} of {held.token_count:,} training tokens in {held.sample_count:,} samples"


def _layout(config: Config, dims: ParallelDims, vocabulary: Vocabulary, memory: memory_fit.Memory) -> list[str]:
    counts = parameter_counts(config.model, vocabulary.padded)
    causes = memory_fit.needed(config, dims.world_size, vocabulary.padded, memory)
    by_cause = ", ".join(f"{name.replace('_', ' ')} {size / 2**30:.3g}" for name, size in causes._asdict().items())
    saved = checkpoint_bytes(config, vocabulary.padded) / 2**30
    held = f"; {saved / dims.world_size:.3g} GiB of it in each rank's host memory while it is written"
    return [
        f"ranks: {dims.world_size} ({dims.describe()}); {config.parallel.engine}",
        f"parameters: {counts.total:,} (of which embeddings {counts.embedding + counts.head:,})",
        f"memory of a rank, GiB: {by_cause}",
        f"a checkpoint: {saved:.3g} GiB{held if config.train.async_save else ''}",
    ]


def _work(config: Config, count: int, vocabulary: Vocabulary) -> str:
    tokens = count * config.train.global_batch * config.model.length
    flops = flops_per_token(config.model, config.objective.attention, vocabulary.padded)
    return f"work: {count:,} steps, {tokens:,} tokens, {flops.causal * tokens:.3g} model FLOPs (of visible pairs)"
