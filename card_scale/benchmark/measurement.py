"""Arms timed in turn on one engine, and what each step's time was spent on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.distributed as dist

from card_scale.benchmark.arms import Arm, with_sizes
from card_scale.benchmark.clock import Clock, Partition, clock_of
from card_scale.benchmark.instruments import PARTS, PHASES
from card_scale.benchmark.peak_memory import PeakMemory
from card_scale.benchmark.runner import ArmRunner, random_batches
from card_scale.benchmark.statistics import Ratio, Summary, paired_ratio, summarise
from card_scale.config import Config
from card_scale.data.samples import Samples
from card_scale.distributed.device import current_device
from card_scale.engine.base import ShardingEngine


class Turn(NamedTuple):
    """What an arm does each time it is its turn."""

    lead_in: int
    """Steps not counted, before the counted ones."""
    counted: int


TURNS = {"cpu": Turn(lead_in=0, counted=1), "cuda": Turn(lead_in=1, counted=4)}
"""By device type. A GPU's steps are timed back to back, as in training, where the host runs ahead of the device; the
first after another arm's is not, for the host waited before it."""


@dataclass
class ArmTimes:
    """Seconds of an arm's steps, by round: the maximum over the ranks, the parts their mean (and thus adding up)."""

    backend: str
    """Attention backend that ran."""
    micro_batch: int
    """Sequences per rank and forward pass."""
    step: list[list[float]] = field(default_factory=list)
    """Whole steps, undisturbed: of each round those of one turn."""
    phases: dict[str, list[float]] = field(default_factory=dict)
    """Seconds of the same steps in each of ``instruments.PHASES``."""
    parts: dict[str, list[float]] = field(default_factory=dict)
    """Seconds in each of ``instruments.PARTS``, of one further step per round."""
    peak_bytes: int = 0
    """Peak memory of a step, see :class:`PeakMemory`."""
    supervised_share: float = 0.0
    """Share of the clean tokens that the objective predicted."""

    def summary(self) -> Summary:
        """Return median and quartiles of the undisturbed steps."""
        return summarise([seconds for turn in self.step for seconds in turn])

    def forward(self) -> Summary:
        """Return median and quartiles of the forward passes of a step."""
        return summarise(self.phases["forward"])

    def forward_backward(self) -> Summary:
        """Return median and quartiles of the forward and backward passes of a step."""
        both = zip(self.phases["forward"], self.phases["backward"], strict=True)
        return summarise([sum(pair) for pair in both])

    def phase_medians(self) -> dict[str, float]:
        """Return the median seconds of each phase."""
        return {name: summarise(seconds).median for name, seconds in self.phases.items()}

    def part_medians(self) -> dict[str, float]:
        """Return the median seconds of each part."""
        return {name: summarise(seconds).median for name, seconds in self.parts.items()}

    def ratio_to(self, base: "ArmTimes") -> Ratio:
        """Return the ratio of this arm's step to that of one measured in the same rounds."""
        return paired_ratio(self.step, base.step)


def order(count: int, turn: int) -> list[int]:
    """Return the order in which ``count`` arms take their turns in a round.

    Rotated from round to round and reversed in every second one: no arm keeps its place or its predecessor.
    """
    first = turn // 2 % count
    rotated = [*range(first, count), *range(first)]
    return rotated[::-1] if turn % 2 else rotated


def measure(
    engine: ShardingEngine,
    arms: Sequence[Arm],
    base: Config,
    vocabulary: int,
    *,
    steps: int,
    warm_up: int,
    micro_batches: Mapping[str, int] | None = None,
) -> dict[str, ArmTimes]:
    """Time at least ``steps`` steps of every arm, in turns, after ``warm_up`` untimed steps of each. Collective.

    Args:
        engine: any, of ``base``'s model and layout; its attention is exchanged.
        arms: what to time.
        base: length, batch and layout.
        vocabulary: pieces; tokens are drawn at random.
        steps: counted steps of each arm, rounded up to whole turns.
        warm_up: at least 2: the first step creates the optimizer's state, the last gives the peak memory.
        micro_batches: micro-batch of each arm, by name, instead of ``base``'s.

    Returns:
        Times by the arms' names, the same on every rank.
    """
    device = current_device()
    clock, turn = clock_of(device), TURNS[device.type]
    runners = [ArmRunner(engine, arm, _sized(base, micro_batches, arm)) for arm in arms]
    times = {runner.arm.name: ArmTimes(runner.backend, runner.config.train.micro_batch) for runner in runners}
    batches = random_batches(base, vocabulary)
    for runner in runners:
        runner.install()
        for step in range(warm_up - 1):
            runner.step(batches(step))
        with PeakMemory(device, engine.chunks) as peak:
            runner.step(batches(warm_up - 1))
        times[runner.arm.name].peak_bytes = maximum_over_ranks(peak.bytes)
    for number in range(-(-steps // turn.counted)):
        batch = batches(warm_up + number)
        for place in order(len(runners), number):
            _take_turn(runners[place], batch, clock, turn, number, times[runners[place].arm.name])
    for runner in runners:
        times[runner.arm.name].supervised_share = runner.supervised_share()
        _join_ranks(times[runner.arm.name])
    return times


def _sized(base: Config, micro_batches: Mapping[str, int] | None, arm: Arm) -> Config:
    if micro_batches is None:
        return base
    sizes = {"length": base.model.length, "global_batch": base.train.global_batch}
    return with_sizes(base, micro_batch=micro_batches[arm.name], **sizes)


def _take_turn(runner: ArmRunner, batch: Samples, clock: Clock, turn: Turn, number: int, times: ArmTimes) -> None:
    """Make one arm's steps of a round. The dissected one stands before or after the others, in turns."""
    runner.install()
    for _ in range(turn.lead_in):
        runner.step(batch)
    timed = []
    if number % 2:
        dissected = runner.dissected_step(batch, clock)
    for _ in range(turn.counted):
        timed.append(runner.timed_step(batch, clock))
    if not number % 2:
        dissected = runner.dissected_step(batch, clock)
    clock.wait()
    _record(times, timed, dissected)


def _record(times: ArmTimes, timed: list[Partition], dissected: Partition) -> None:
    times.step.append([partition.total() for partition in timed])
    for partition in timed:
        seconds = partition.seconds()
        for name in PHASES:
            times.phases.setdefault(name, []).append(seconds.get(name, 0.0))
    seconds = dissected.seconds()
    for name in PARTS:
        times.parts.setdefault(name, []).append(seconds.get(name, 0.0))


def _join_ranks(times: ArmTimes) -> None:
    """Replace one rank's seconds by all ranks'."""
    times.step = _reduced(times.step, dist.ReduceOp.MAX)
    times.phases = {name: _reduced(seconds, dist.ReduceOp.MAX) for name, seconds in times.phases.items()}
    ranks = dist.get_world_size()
    times.parts = {
        name: [total / ranks for total in _reduced(seconds, dist.ReduceOp.SUM)] for name, seconds in times.parts.items()
    }


def _reduced(values: list, operation: dist.ReduceOp.RedOpType) -> list:
    tensor = torch.tensor(values, dtype=torch.float64, device=current_device())
    dist.all_reduce(tensor, op=operation)
    return tensor.tolist()


def maximum_over_ranks(number: int) -> int:
    """Return the largest of the ranks' numbers. Collective."""
    return int(_reduced([float(number)], dist.ReduceOp.MAX)[0])
