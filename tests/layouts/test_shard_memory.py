"""While an engine is built and weights are initialised, a rank's memory holds its shard, never a whole stage."""

import json
import math

import pytest
from torch.profiler import ProfilerActivity, profile

from card_scale.config import Config
from tests.layouts.processes import run_ranks
from tests.layouts.trajectory import engine_of, form_groups, small_config

SIZES = {"layers": 8, "hidden": 512, "heads": 8, "ffn": 1408, "length": 16}


def peak_of_building(configs: list[Config]) -> list[tuple[int, int, int]]:
    """Return for each configuration the most bytes allocated at one time while its engine was built.

    Beside them stand the bytes, in float32, of the whole model and of its largest parameter.
    """
    form_groups(configs[0])
    found = []
    for config in configs:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            engine = engine_of(config)
        events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
        allocated = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            allocated += event.nbytes()
            peak = max(peak, allocated)
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
