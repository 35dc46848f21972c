"""Which steps are made and which of them count, on runners that only write down what they are asked."""

import contextlib
import types

import pytest
import torch

from card_scale.benchmark import measurement
from card_scale.benchmark.arms import Arm
from card_scale.benchmark.clock import HostClock, Partition
from card_scale.config import Config

ARMS = [Arm("ar"), Arm("card")]


class StubRunner:
    """Stands in for ArmRunner: ``made`` lists (arm, kind of step, batch) of all runners, in order."""

    made: list[tuple[str, str, int]]

    def __init__(self, _engine, arm, base):
        self.arm, self.config, self.backend = arm, base, "stub"

    def install(self):
        pass

    def step(self, batch):
        self.made.append((self.arm.name, "untimed", batch))

    def timed_step(self, batch, clock):
        return self._partition("timed", batch, clock)

    def dissected_step(self, batch, clock):
        return self._partition("dissected", batch, clock)

    def _partition(self, kind, batch, clock):
        self.made.append((self.arm.name, kind, batch))
        partition = Partition(clock, "prepare")
        partition.end()
        return partition

    def supervised_share(self):
        return 1.0


class StubPeakMemory(contextlib.AbstractContextManager):
    """Remembers how many steps had been made when it was opened; its bytes are those made inside."""

    def __init__(self, _device, _modules):
        self.before = len(StubRunner.made)

    def __exit__(self, *_):
        self.bytes = len(StubRunner.made) - self.before


@pytest.fixture
def measure(monkeypatch):
    """Return a function that measures ARMS on a device of a type, in one process without a group, on stubs."""

    def run(device: str, **arguments):
        monkeypatch.setattr(StubRunner, "made", [], raising=False)
        monkeypatch.setattr(measurement, "ArmRunner", StubRunner)
        monkeypatch.setattr(measurement, "PeakMemory", StubPeakMemory)
        monkeypatch.setattr(measurement, "clock_of", lambda _: HostClock())
        monkeypatch.setattr(measurement, "random_batches", lambda *_: lambda step: step)
        monkeypatch.setattr(measurement, "_reduced", lambda values, _operation: values)
        monkeypatch.setattr(measurement.dist, "get_world_size", lambda: 1)
        monkeypatch.setattr(measurement, "current_device", lambda: torch.device(device))
        engine = types.SimpleNamespace(chunks=[])
        return measurement.measure(engine, ARMS, Config(), 256, **arguments), StubRunner.made

    return run


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("warm_up", [2, 5])
def test_every_arm_is_warmed_up_before_any_is_timed(measure, device, warm_up):
    times, made = measure(device, steps=4, warm_up=warm_up)
    expected = [(arm.name, "untimed", step) for arm in ARMS for step in range(warm_up)]
    assert made[: len(expected)] == expected
    # The peak is that of the last of them.
    assert [times[arm.name].peak_bytes for arm in ARMS] == [1, 1]


def test_a_turn_on_a_cpu_is_one_step(measure):
    times, made = measure("cpu", steps=3, warm_up=2)
    after = made[4:]
    # One dissected step a turn, before or after the counted one.
    assert [kind for arm, kind, _ in after if arm == "ar"] == [
        *("timed", "dissected"),
        *("dissected", "timed"),
        *("timed", "dissected"),
    ]
    assert [batch for arm, _, batch in after if arm == "card"] == [2, 2, 3, 3, 4, 4]
    assert [len(turn) for turn in times["card"].step] == [1, 1, 1]


def test_a_turn_on_a_gpu_begins_with_a_step_that_does_not_count(measure):
    times, made = measure("cuda", steps=6, warm_up=2)
    after = made[4:]
    assert [kind for arm, kind, _ in after if arm == "card"] == [
        *("untimed", "timed", "timed", "timed", "timed", "dissected"),
        *("untimed", "dissected", "timed", "timed", "timed", "timed"),
    ]
    # 6 steps asked for are two whole turns of 4.
    assert [len(turn) for turn in times["card"].step] == [4, 4]
    assert len(times["card"].phases["forward"]) == 8
    assert len(times["card"].parts["rest"]) == 2
