"""Stamps inside a step: they change nothing, come in order, and divide the step without remainder."""

import itertools

import pytest
import torch
import torch.distributed as dist

from card_scale.benchmark.arms import Arm
from card_scale.benchmark.clock import Clock, Partition
from card_scale.benchmark.instruments import PHASES, mark, parts, phases
from card_scale.benchmark.runner import ArmRunner, random_batches
from card_scale.distributed import parallel_dims, process_groups
from card_scale.engine.state_keys import WEIGHT
from tests.layouts.processes import run_ranks
from tests.layouts.trajectory import engine_of, small_config


class CountingClock(Clock):
    """A clock on which every stamp takes one second."""

    def __init__(self) -> None:
        self.ticks = itertools.count()

    def stamp(self) -> int:
        return next(self.ticks)

    def seconds(self, begin: int, end: int) -> float:
        return float(end - begin)

    def wait(self) -> None:
        pass


class Recording(Partition):
    """A partition that remembers the order of its parts."""

    def __init__(self, first: str):
        super().__init__(CountingClock(), first)
        self.order = [first]

    def switch(self, part: str) -> None:
        super().switch(part)
        self.order.append(part)


def test_parts_add_up_to_the_whole():
    partition = Partition(CountingClock(), "a")
    for part in "babcb":
        partition.switch(part)
    partition.end()
    assert partition.seconds() == {"a": 2.0, "b": 3.0, "c": 1.0}
    assert partition.total() == 6.0


def test_a_mark_is_an_identity_in_both_passes():
    seen = []
    x, y = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    a, b = mark(seen.append, "forward", "backward", x, y)
    assert torch.equal(a, x)
    assert torch.equal(b, y)
    assert seen == ["forward"]
    (a * b).sum().backward()
    assert seen == ["forward", "backward"]
    assert torch.equal(x.grad, y.detach())
    assert torch.equal(y.grad, x.detach())


def test_a_mark_of_an_unused_tensor_leaves_its_gradient_out():
    x, y = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    a, _ = mark(lambda _: None, "", "", x, y)
    a.sum().backward()
    assert y.grad is None


def weights_after(config, arm: Arm, *, dissect: bool) -> tuple[list[torch.Tensor], list[str]]:
    """Return the weights after two steps, and the order of parts in the last."""
    engine = engine_of(config)
    runner, batches = ArmRunner(engine, arm, config), random_batches(config, 250)
    runner.install()
    recording = Recording("rest")
    for step in range(2):
        recording = Recording("rest")
        if dissect:
            with parts(engine, recording, inside_layers=True):
                runner.step(batches(step))
            recording.end()
            assert sum(recording.seconds().values()) == recording.total()
        else:
            runner.step(batches(step))
    assert all("attend" not in vars(chunk.attention) for chunk in engine.chunks)
    return [engine.full_state(parameter, WEIGHT).clone() for parameter, _ in engine.weights()], recording.order


def dissected_and_not(config, arm: Arm) -> list[str]:
    process_groups.initialize(parallel_dims.plan(config, dist.get_world_size()), 60)
    plain, _ = weights_after(config, arm, dissect=False)
    dissected, order = weights_after(config, arm, dissect=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, dissected, strict=True))
    return order


ONE_LAYER_EACH_WAY = ["layers", "attention", "layers"]


@pytest.mark.parametrize("arm", [Arm("card"), Arm("bd3lm", "split", 4), Arm("bd3lm", "dense", 4)], ids=lambda a: a.name)
@pytest.mark.parametrize("engine", [dict(zero=0), dict(zero=3), dict(engine="fsdp2")], ids=str)
def test_dissecting_a_step_changes_no_bit_and_sees_every_part_in_order(arm, engine):
    config = small_config(parallel=engine, model=dict(layers=2), train=dict(global_batch=2, micro_batch=2))
    (order,) = run_ranks(dissected_and_not, 1, config, arm, deadline=60)
    layers = ["layers", *["attention", "layers"] * 2]
    assert order == ["rest", *layers, "head", "rest", "head", *layers, "rest"]


def test_pipeline_stages_see_their_own_parts():
    config = small_config(
        parallel=dict(pipeline=2, zero=0), model=dict(layers=2), train=dict(global_batch=1, micro_batch=1)
    )
    first, last = run_ranks(dissected_and_not, 2, config, Arm("bd3lm", "split", 4), deadline=60)
    assert first == ["rest", *ONE_LAYER_EACH_WAY, "rest", *ONE_LAYER_EACH_WAY, "rest"]
    assert last == ["rest", *ONE_LAYER_EACH_WAY, "head", "rest", "head", *ONE_LAYER_EACH_WAY, "rest"]


def phase_order(config) -> list[str]:
    process_groups.initialize(parallel_dims.plan(config, dist.get_world_size()), 60)
    engine = engine_of(config)
    runner = ArmRunner(engine, Arm("card"), config)
    runner.install()
    recording = Recording("prepare")
    with phases(engine, recording):
        runner.step(random_batches(config, 250)(0))
    recording.end()
    assert "step" not in vars(engine)
    assert "before_backward" not in vars(engine)
    return recording.order


def test_phases_follow_the_micro_batches():
    config = small_config(model=dict(layers=1), train=dict(global_batch=2, micro_batch=1))
    (order,) = run_ranks(phase_order, 1, config, deadline=60)
    assert order == ["prepare", "forward", "backward", "forward", "backward", "optimizer"]
    assert set(order) == set(PHASES)
