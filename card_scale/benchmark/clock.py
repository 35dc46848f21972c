"""Stamps in time on a device, and the division of a span into named parts."""

import itertools
import time
from abc import ABC, abstractmethod
from typing import Any

import torch


class Clock(ABC):
    """Stamps the moment that a device reaches a point of its work."""

    @abstractmethod
    def stamp(self) -> Any:
        """Mark this point of the device's work, without waiting for it."""

    @abstractmethod
    def seconds(self, begin: Any, end: Any) -> float:
        """Return the seconds between two stamps that the device has reached."""

    @abstractmethod
    def wait(self) -> None:
        """Wait until the device has done all its work."""


class HostClock(Clock):
    """The CPU, whose work is done when the call returns."""

    def stamp(self) -> float:
        return time.perf_counter()

    def seconds(self, begin: float, end: float) -> float:
        return end - begin

    def wait(self) -> None:
        """Nothing is outstanding."""


class CudaClock(Clock):
    """Events in the current GPU's current stream."""

    def stamp(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return begin.elapsed_time(end) / 1000.0

    def wait(self) -> None:
        torch.cuda.synchronize()


def clock_of(device: torch.device) -> Clock:
    """Return the clock of a device."""
    return CudaClock() if device.type == "cuda" else HostClock()


class Partition:
    """Divides a span of time into named parts: every moment belongs to the part last switched to.

    The parts therefore add up to the span, whatever is measured.
    """

    def __init__(self, clock: Clock, first: str):
        """Begin the span, in part ``first``."""
        self._clock = clock
        self._parts = [first]
        self._stamps = [clock.stamp()]

    def switch(self, part: str) -> None:
        """What follows belongs to ``part``."""
        self._parts.append(part)
        self._stamps.append(self._clock.stamp())

    def end(self) -> None:
        """End the span."""
        self._stamps.append(self._clock.stamp())

    def total(self) -> float:
        """Return the seconds of the whole span. The device must have reached its end."""
        return self._clock.seconds(self._stamps[0], self._stamps[-1])

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each part that was switched to. The device must have reached the span's end."""
        sums = dict.fromkeys(self._parts, 0.0)
        for part, (begin, end) in zip(self._parts, itertools.pairwise(self._stamps), strict=True):
            sums[part] += self._clock.seconds(begin, end)
        return sums
