"""A rank's memory holds its shard, never a whole stage: while an engine is built, saved and loaded."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from card_scale.checkpoint.checkpointer import Checkpointer
from card_scale.checkpoint.commit import Publication, form_commit_group
from card_scale.checkpoint.load import load
from card_scale.checkpoint.reader import CheckpointReader
from card_scale.checkpoint.retention import Retention
from card_scale.config import Config
from card_scale.engine.base import ShardingEngine
from tests.checkpoint import handmade
from tests.layouts.processes import run_ranks
from tests.layouts.trajectory import engine_of, form_groups, small_config

SIZES = {"layers": 8, "hidden": 512, "heads": 8, "ffn": 1408, "length": 16}


def peak_of(action: Callable[[], object]) -> int:
    """Return the most bytes allocated at one time by an action, above what was held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        action()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    allocated = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak


def peak_of_building(configs: list[Config]) -> list[tuple[int, int, int]]:
    """Return for each configuration the most bytes allocated at one time while its engine was built.

    Beside them stand the bytes, in float32, of the whole model and of its largest parameter.
    """
    form_groups(configs[0])
    found = []
    for config in configs:
        engines: list[ShardingEngine] = []
        peak = peak_of(lambda config=config, engines=engines: engines.append(engine_of(config)))
        (engine,) = engines
        sizes = [4 * math.prod(logical.global_shape) for _, logical in engine.weights()]
        found.append((peak, sum(sizes), max(sizes)))
    return found


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_fsdp2_holds_its_shard_alone(ranks):
    config = small_config(model=SIZES, parallel={"engine": "fsdp2"})
    for ((peak, whole, largest),) in run_ranks(peak_of_building, ranks, [config], deadline=60):
        assert whole / ranks <= peak < whole / ranks + 4 * largest


def test_zero3_holds_its_states_alone(tmp_path):
    """DeepSpeed makes weights, gradients and moments at once: five float32 shards, at eight ranks less than a stage."""
    path = tmp_path / "zero3.json"
    buckets = dict.fromkeys(("reduce_bucket_size", "stage3_prefetch_bucket_size"), 100_000)
    path.write_text(json.dumps({"zero_optimization": {"stage": 3, **buckets}}))
    # Many small layers: what was gathered and is not yet freed, more of it on a busy machine, is little of the whole.
    config = small_config(model=SIZES | {"layers": 32, "hidden": 256, "ffn": 704}, parallel={"deepspeed": str(path)})
    for ((peak, whole, _),) in run_ranks(peak_of_building, 8, [config], deadline=120):
        # Five of eight shards are 0.63; a stage made whole first gives 1.0 and more.
        assert peak < 0.9 * whole


def peaks_of_a_checkpoint(configs: list[Config], root: Path) -> list[tuple[int, int, int, int]]:
    """Return for each configuration the most bytes allocated at one time while it was saved and while it was loaded,
    and the bytes, in float32, of this rank's moments and of the largest parameter."""
    form_groups(configs[0])
    return [peaks_of_one(config, root / str(number)) for number, config in enumerate(configs)]


def peaks_of_one(config: Config, root: Path) -> tuple[int, int, int, int]:
    engine = engine_of(config)
    engine.create_optimizer_state(1)
    checkpointer = Checkpointer(root, form_commit_group(60))
    description = handmade.description(1, list(engine.state_keys()))
    publication = Publication(description, handmade.run_files(1), Retention())
    published: list[Path | None] = []
    saving = peak_of(lambda: published.append(checkpointer.save(engine, publication)))
    with CheckpointReader(published[0]) as reader:
        # The library maps the files, which counts as allocated and is none of the process's memory.
        mapped = sum(file.bytes for name, file in reader.manifest.files.items() if name.endswith(".safetensors"))
        loading = peak_of(lambda: load(engine, reader)) - mapped
    sizes = [4 * math.prod(logical.global_shape) for _, logical in engine.weights()]
    return saving, loading, 2 * sum(sizes) // dist.get_world_size(), max(sizes)


def test_saving_and_loading_hold_one_parameter_at_a_time(tmp_path):
    """And not the rank's share. A load also makes the optimizer's states, of half of the model: they stay."""
    configs = [small_config(model=SIZES, parallel=parallel) for parallel in ({"engine": "fsdp2"}, {"zero": 3})]
    for found in run_ranks(peaks_of_a_checkpoint, 2, configs, tmp_path, deadline=120):
        for saving, loading, states, largest in found:
            assert states > 12 * largest
            assert saving < 5 * largest
            assert loading < states + 5 * largest
