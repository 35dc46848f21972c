"""Ranks that make the others wait without hanging: late with their batch, or on a device slower than the others'; and
which takes the most memory."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist

from card_scale.distributed.device import current_device

LATE_SHARE = 0.1
"""Of an update's time by which a batch that comes later than the median rank's is worth a word."""
SLOW_RATIO = 1.25
"""Of a device's time to the median's that is worth a word: cards of one kind differ by a few per cent."""
_PROBE_SIZE, _PROBE_PRODUCTS = 2048, 32  # 8 MiB a matrix: a card may be nearly full


class Delays(NamedTuple):
    """What is recorded of the ranks' differences."""

    fields: dict[str, float]
    """Of a training record."""
    warnings: list[str]


class Stragglers:
    """Compares ranks between two log lines. Its calls, but for the clock's, are collective.

    The first update opens files and fills pages, on one rank later than on another: where a line tells of others beside
    it, it is not counted, and where a line tells of it alone, nobody is warned that a batch was late.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._begin = self._compared = clock()
        self._late = 0.0
        self._updates = 0
        self._counts_first = True

    def begin(self) -> None:
        """All ranks have just agreed to make an update."""
        if self._counts_first and self._updates == 1:
            self._restart()
        self._begin = self._clock()
        if self._updates == 0:
            self._compared = self._begin  # what lay before, evaluating and saving, is no update

    def ready(self) -> None:
        """This rank has its batch."""
        self._late += self._clock() - self._begin
        self._updates += 1

    def compare(self) -> Delays:
        """Return what is to be said about the updates since the last call; for one rank its memory alone."""
        world_size, peak = dist.get_world_size(), _peak_bytes()
        if world_size == 1:
            return Delays(memory_fields([peak]), [])
        step_seconds = (self._clock() - self._compared) / max(1, self._updates)
        mine = torch.tensor([self._late / max(1, self._updates), _probe_seconds(), peak], dtype=torch.float64)
        is_first = self._counts_first
        self._restart()
        gathered = [torch.empty_like(mine) for _ in range(world_size)]
        dist.all_gather(gathered, mine)
        lates, probes, peaks = torch.stack(gathered).T.tolist()
        delays = described(lates, probes, step_seconds, is_first=is_first)
        return delays._replace(fields=delays.fields | memory_fields(peaks))

    def _restart(self) -> None:
        self._late, self._updates, self._counts_first = 0.0, 0, False


def described(
    lates: Sequence[float], probes: Sequence[float], step_seconds: float, *, is_first: bool = False
) -> Delays:
    """Return what is to be said, given the seconds of each rank and of an update; probes of 0 were not made.

    The lateness of the first update is recorded without a word.
    """
    late, slow = _Spread.of(lates), _Spread.of(probes)
    fields = {"stragglers/batch_ms": (late.largest - late.median) * 1000}
    warnings = []
    if late.largest - late.median > LATE_SHARE * step_seconds and not is_first:
        warnings.append(
            f"rank {late.rank} has its batch {late.largest:.3g} s into an update, the median rank {late.median:.3g} s"
        )
    if slow.median > 0:
        fields["stragglers/device_ratio"] = slow.largest / slow.median
        if slow.largest > SLOW_RATIO * slow.median:
            ratio = slow.largest / slow.median
            warnings.append(f"the device of rank {slow.rank} takes {ratio:.2f} times as long as the median's")
    return Delays(fields, warnings)


def memory_fields(peak_bytes: Sequence[float]) -> dict[str, float]:
    """Return the memory of the rank that has taken most; nothing on a CPU, where all are 0."""
    most = max(peak_bytes)
    return {"memory/peak_gib": most / 2**30} if most else {}


class _Spread(NamedTuple):
    rank: int
    largest: float
    median: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "_Spread":
        largest = max(seconds)
        # The lower median: of two ranks the other one.
        return cls(list(seconds).index(largest), largest, sorted(seconds)[(len(seconds) - 1) // 2])


def _peak_bytes() -> int:
    """Return the most that this rank's GPU has held in tensors since the start; 0 on a CPU."""
    device = current_device()
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def _probe_seconds() -> float:
    """Return how long this rank's GPU takes for some products, alone; 0 on CPU, where ranks share cores."""
    device = current_device()
    if device.type != "cuda":
        return 0.0
    matrix = torch.ones(_PROBE_SIZE, _PROBE_SIZE, dtype=torch.bfloat16, device=device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    matrix @ matrix
    begin.record()
    for _ in range(_PROBE_PRODUCTS):
        matrix @ matrix
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000
