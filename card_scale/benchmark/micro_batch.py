"""The largest micro-batch of each arm under one memory cap."""

from collections.abc import Sequence

from card_scale.benchmark.arms import Arm, with_sizes
from card_scale.benchmark.measurement import maximum_over_ranks
from card_scale.benchmark.peak_memory import PeakMemory
from card_scale.benchmark.runner import ArmRunner, random_batches
from card_scale.config import Config
from card_scale.distributed.device import current_device
from card_scale.distributed.parallel_dims import ParallelDims
from card_scale.engine.base import ShardingEngine
from card_scale.errors import ConfigurationError

LARGEST = 4096
"""No arm is given a larger micro-batch: by then a step does not gain from it."""


def largest_fitting(one: float, two: float, cap: float) -> int:
    """Return the largest power of two, up to LARGEST, of sequences that fit into ``cap`` bytes; 0 if not one fits.

    ``one`` and ``two`` are the peak bytes at one and two sequences; memory grows linearly with them.
    """
    per_sequence = max(two - one, 1.0)
    fixed = one - per_sequence
    fitting = [2**power for power in range(LARGEST.bit_length()) if fixed + per_sequence * 2**power <= cap]
    return max(fitting, default=0)


def best_micro_batches(
    engine: ShardingEngine,
    arms: Sequence[Arm],
    base: Config,
    vocabulary: int,
    layout: ParallelDims,
    *,
    states: float,
    cap: float,
) -> dict[str, int]:
    """Measure each arm's memory at one and two sequences; return its largest micro-batch under ``cap``, by name.

    ``states`` bytes are added to what is measured on a CPU, where states are not seen. Collective. Raises
    ConfigurationError for an arm of which not one sequence fits.
    """
    device = current_device()
    best = {}
    for arm in arms:
        peaks = []
        for sequences in (1, 2):
            in_flight = sequences * layout.data * layout.pipeline
            sizes = with_sizes(base, length=base.model.length, micro_batch=sequences, global_batch=in_flight)
            runner = ArmRunner(engine, arm, sizes)
            runner.install()
            batch = random_batches(sizes, vocabulary)(0)
            runner.step(batch)  # compiles, and makes masks and optimizer states
            with PeakMemory(device, engine.chunks) as peak:
                runner.step(batch)
            peaks.append(maximum_over_ranks(peak.bytes) + (states if device.type == "cpu" else 0.0))
        best[arm.name] = largest_fitting(peaks[0], peaks[1], cap)
        if not best[arm.name]:
            raise ConfigurationError(
                f"arm {arm.name}: one sequence of model.length {base.model.length} takes {peaks[0] / 2**30:.3g} GiB, "
                f"above --memory-gib {cap / 2**30:.3g}"
            )
    return best
