"""``--dry-run``: check everything a run needs and print what it would be, without starting it."""

import os
import time

from card_scale import faults
from card_scale.config import Config
from card_scale.cost.flops import flops_per_token
from card_scale.cost.memory import step_memory
from card_scale.cost.parameters import parameter_counts
from card_scale.distributed.launched_as import rank_variables
from card_scale.engine.selection import engine_kind
from card_scale.training import initial_weights, preflight, resume_point, run_data
from card_scale.training.run_directory import RunDirectory
from card_scale.training.run_lock import RunLock
from card_scale.training.steps import total_steps
from card_scale.training.stop import time_limit
from card_scale.versions import check_versions


def dry_run(config: Config, *, from_scratch: bool = False) -> None:
    """Validate the run and print configuration, layout, parameters, memory, work and where it would begin.

    Raises what the run would raise before its process groups form, and of its checkpoints what needs no engine. The
    world size is WORLD_SIZE, or the smallest that holds the layout.
    """
    check_versions()
    faults.check()
    launched = {**os.environ, **rank_variables(os.environ)}
    time_limit(config.run.max_hours, config.run.stop_before_end, os.environ, time.time(), time.monotonic())
    smallest = config.parallel.tensor * config.parallel.pipeline
    dims = preflight.check(config, int(launched.get("WORLD_SIZE", smallest)))
    directory = RunDirectory(config.run.dir)
    if not from_scratch:
        directory.check_same_run(config)
    RunLock(directory.path).check_free()
    data = run_data.open_data(config)
    point = None if from_scratch else resume_point.find(directory.checkpoints)
    if point is not None:
        resume_point.check_same_data(point, data)
    else:
        if not from_scratch:
            directory.check_nothing_saved()
        initial_weights.find(config, data)
    steps = total_steps(config, data.train.sample_count)
    model, rows = config.model, data.vocabulary.padded
    counts = parameter_counts(model, rows)
    memory = step_memory(config, dims, engine_kind(config).zero_stage(config), rows)
    flops = flops_per_token(model, config.objective.attention, rows)
    tokens = steps * config.train.global_batch * model.length
    print(config.to_yaml(), end="")
    print("---")
    print(f"ranks: {dims.world_size} ({dims.describe()})")
    print(f"parameters: {counts.total:,} (of which embeddings {counts.embedding + counts.head:,})")
    print(f"model states per rank: about {memory.states / 2**30:.2f} GiB")
    print(f"activations kept per rank: about {memory.activations / 2**30:.2f} GiB")
    saved = counts.total * (16 if config.optimizer.ema else 12) / 2**30
    held = f"; {saved / dims.world_size:.3g} GiB of it in each rank's host memory while it is written"
    print(f"a checkpoint: {saved:.3g} GiB{held if config.train.async_save else ''}")
    print(
        f"data: {data.train.token_count:,} training tokens in {data.train.sample_count:,} samples; "
        f"{data.validation.sample_count:,} validation samples"
    )
    print(data.describe_held_out())
    print(
        f"work: {steps:,} steps, {tokens:,} tokens ({tokens / (data.train.sample_count * model.length):.2f} epochs), "
        f"{flops.causal * tokens:.3g} model FLOPs (of visible pairs)"
    )
    begun_from = f" from the weights of {config.run.init_from}" if config.run.init_from else ""
    new = f"would start a new run in {config.run.dir}{begun_from}"
    if from_scratch:
        new += ", after setting aside what is there"
    print(f"would resume from {point.describe()}" if point else new)
