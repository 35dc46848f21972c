"""The numerics guard: what one rank spoils no rank applies, and the run goes on as if the batch had not been."""

import json
import os

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from card_scale.config import GuardConfig
from card_scale.distributed.device import current_device
from card_scale.engine import optimizer
from card_scale.errors import NumericError
from card_scale.faults import VARIABLE
from card_scale.training.guard import STATE, Guard, RollBack
from card_scale.training.train_step import TrainStep
from tests.layouts.processes import run_ranks
from tests.layouts.trajectory import engine_of, form_groups, global_batch, rank_batch, small_config

ENGINES = {
    "ZeRO-0": dict(zero=0),
    "ZeRO-1": dict(zero=1),
    "ZeRO-2": dict(zero=2),
    "ZeRO-3": dict(zero=3),
    "FSDP2": dict(engine="fsdp2"),
}
LAYOUTS = {"one rank": (1, {}), "dp2": (2, {}), "tp2": (2, dict(tensor=2)), "pp2": (2, dict(pipeline=2))}
FAULTS = ("loss,action=nan", "gradient,action=infinity", "gradient,action=spike")
AFTER = 2
"""Good updates before the bad one."""
WINDOW = 16
ALIKE = [[5.5 + 0.01 * number, 0.5 + 0.01 * number] for number in range(WINDOW // 2 - AFTER)]
"""(loss, gradient norm) of updates before them, so that the window is half full and a spike can be told."""


def states(engine) -> list[Tensor]:
    return [engine.full_state(p, key).clone() for p, _ in engine.weights() for key in engine.state_keys()]


def check_engine(config) -> str | None:
    """Make good updates and after them bad ones, each followed by a good one; return what is not as if the bad ones had
    not been."""
    rank = dist.get_world_size() - 1  # the last pipeline stage, which knows the loss
    engine, other = engine_of(config), engine_of(config)
    state = {STATE: {"refused": 0, "row": 0, "filled": len(ALIKE), "window": ALIKE}}
    update, expected = (TrainStep(each, config.objective, config, state) for each in (engine, other))
    rate = config.optimizer.lr
    for step in range(AFTER):
        update(rank_batch(config, step), rate)
        expected(rank_batch(config, step), rate)
    for number, fault in enumerate(FAULTS):
        bad_step = AFTER + 2 * number
        before = states(engine)
        os.environ[VARIABLE] = f"rank={rank},at={fault},step={bad_step + 1}"
        try:
            result = update(rank_batch(config, bad_step), rate)
        finally:
            del os.environ[VARIABLE]
        if not all(map(torch.equal, states(engine), before)):
            return f"{fault}: the bad update changed something"
        report = update.report(bad_step + 1, result, is_logged=False)
        refusals = (report.refusals.total, report.refusals.steps, report.refusals.not_finite)
        if report.applied or refusals != (number + 1, (bad_step + 1,), "spike" not in fault):
            return f"{fault}: {report}"
        result = update(rank_batch(config, bad_step + 1), rate)
        if not update.report(bad_step + 2, result, is_logged=False).applied:
            return f"{fault}: the update after the bad one was not applied"
        expected(rank_batch(config, bad_step + 1), rate)
        # Bit for bit, so that Adam's count of updates, which corrects its bias, is right too.
        if not all(map(torch.equal, states(engine), states(other))):
            return f"{fault}: the update after the bad one is another one"
    return None


def check_all(configs, as_on_a_gpu: bool = False) -> list[str]:
    """``as_on_a_gpu``: with the one kernel that is told of the refusal and not asked for it."""
    optimizer.fused = lambda: as_on_a_gpu
    form_groups(configs[0])
    found = ((config, check_engine(config)) for config in configs)
    return [f"{config.parallel}, {config.train.precision}: {wrong}" for config, wrong in found if wrong]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_offloaded_states_are_refused_alike(tmp_path, precision):
    """Under offload ZeRO-1 and 2 keep what they have accumulated where they leave out an update themselves."""
    configs = []
    for stage in (1, 2, 3):
        path = tmp_path / f"offload_{stage}.json"
        path.write_text(json.dumps({"zero_optimization": {"stage": stage, "offload_optimizer": {"device": "cpu"}}}))
        parallel = {"deepspeed": str(path)}
        train = {"precision": precision, "steps": 20, "global_batch": 4, "micro_batch": 1}
        guard = {"policy": "skip", "spike": 20.0, "window": WINDOW}
        configs.append(
            small_config(model={"layers": 2}, parallel=parallel, optimizer={"ema": 0.9}, train=train, guard=guard)
        )
    assert run_ranks(check_all, 2, configs, deadline=120) == [[], []]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_one_rank_spoils_no_rank_applies(layout):
    ranks, parallel = LAYOUTS[layout]
    configs = [
        small_config(
            model=dict(layers=2, tie_embeddings=precision == "bf16"),
            parallel={**parallel, **engine},
            optimizer=dict(ema=0.9),
            train=dict(precision=precision, steps=20, global_batch=4, micro_batch=1 if layout == "dp2" else 2),
            guard=dict(policy="skip", spike=20.0, window=WINDOW),
        )
        for precision in ("fp32", "bf16")
        for name, engine in ENGINES.items()
        if precision == "fp32" or (layout == "dp2" and name != "ZeRO-0")
    ]
    for found in run_ranks(check_all, ranks, configs, deadline=120):
        assert found == []


def test_the_fused_kernel_is_told_of_a_refusal():
    configs = [
        small_config(
            model={"layers": 2},
            parallel=engine,
            optimizer={"ema": 0.9},
            train={"steps": 20, "global_batch": 4, "micro_batch": 1},
            guard={"policy": "skip", "spike": 20.0, "window": WINDOW},
        )
        for engine in ENGINES.values()
    ]
    assert run_ranks(check_all, 2, configs, True, deadline=120) == [[], []]


def first_update_is_bad(config) -> bool:
    """Whether nothing has changed, and states are there to be saved."""
    form_groups(config)
    found = []
    for engine_keys in ENGINES.values():
        changed = small_config(parallel=engine_keys, optimizer=dict(ema=0.9), guard=dict(policy="skip"))
        engine = engine_of(changed)
        update = TrainStep(engine, changed.objective, changed)
        os.environ[VARIABLE] = "rank=all,at=loss,action=nan"
        update(rank_batch(changed, 0), 1e-3)
        del os.environ[VARIABLE]
        for parameter, _ in engine.weights():
            weight, ema = engine.full_state(parameter, "weight"), engine.full_state(parameter, "ema")
            found.append(torch.equal(weight, ema) and not engine.full_state(parameter, "exp_avg").any())
    return all(found)


def test_a_bad_first_update_leaves_states_that_can_be_saved():
    assert run_ranks(first_update_is_bad, 1, small_config()) == [True]


def judged(config: GuardConfig, series: list[tuple[float, float]]) -> list[bool]:
    guard = Guard(config, current_device())
    return [
        bool(guard.judge(step, torch.tensor(loss), torch.tensor(norm)))
        for step, (loss, norm) in enumerate(series, start=1)
    ]


def expected_spikes(series: list[tuple[float, float]], sigmas: float, window: int) -> list[bool]:
    """By the text: against mean and standard deviation of the last ``window`` accepted updates."""
    accepted: list[tuple[float, float]] = []
    found = []
    for pair in series:
        recent = torch.tensor(accepted[-window:], dtype=torch.float64)
        bad = not all(map(torch.isfinite, torch.tensor(pair)))
        if not bad and len(accepted) >= (window + 1) // 2:
            limit = recent.mean(0) + sigmas * recent.std(0, correction=0)
            bad = bool((torch.tensor(pair).double() > limit).any())
        found.append(bad)
        if not bad:
            accepted.append(pair)
    return found


def compare_spikes(_: object) -> int:
    form_groups(small_config())
    generator = torch.Generator().manual_seed(5)
    spikes = 0
    for window in (16, 17):
        for sigmas in (1.5, 3.0):
            values = torch.randn(80, 2, generator=generator).abs()
            values[torch.rand(80, 2, generator=generator) < 0.05] *= 30
            values[40, 0], values[50, 1] = float("nan"), float("inf")
            series = [tuple(row) for row in values.tolist()]
            found = judged(GuardConfig(policy="skip", spike=sigmas, window=window), series)
            assert found == expected_spikes(series, sigmas, window)
            spikes += sum(found)
    return spikes


def test_spikes_are_those_of_a_loop_in_float64():
    (spikes,) = run_ranks(compare_spikes, 1, None)
    assert 20 < spikes < 160


def policies(_: object) -> None:
    form_groups(small_config())
    good, bad = (2.0, 1.0), (float("nan"), 1.0)

    def guard_after(policy: str, series, patience=1) -> Guard:
        guard = Guard(GuardConfig(policy=policy, patience=patience), current_device())
        guard.refused = [
            bool(guard.judge(step, torch.tensor(loss), torch.tensor(norm)))
            for step, (loss, norm) in enumerate(series, start=1)
        ]
        return guard

    assert guard_after("raise", [good, good]).check(2).total == 0
    # Under raise nothing is applied any more until the host has seen it, and the first one is named.
    guard = guard_after("raise", [good, bad, good, bad])
    assert guard.refused == [False, True, True, True]
    with pytest.raises(NumericError, match="step 2: the loss is nan; the update was not applied"):
        guard.check(4)

    guard = guard_after("skip", [good, bad, good, bad, good])
    found = guard.check(5)
    assert (found.total, found.steps, found.not_finite, found.longest_row) == (2, (2, 4), 2, 1)
    assert found.reason == "step 4: the loss is nan"
    assert guard.check(6).steps == ()
    with pytest.raises(NumericError, match=r"2 updates in a row were not applied, guard\.patience allows 1"):
        guard_after("skip", [bad, bad, good]).check(3)
    # A row that a look falls into counts whole.
    guard = guard_after("skip", [good, bad])
    guard.check(2)
    guard.judge(3, torch.tensor(float("inf")), torch.tensor(1.0))
    with pytest.raises(NumericError, match="2 updates in a row"):
        guard.check(3)
    with pytest.raises(RollBack) as caught:
        guard_after("rollback", [bad, bad, good]).check(3)
    assert caught.value.step == 3


def test_policies():
    run_ranks(policies, 1, None)


def decisions_after_a_resume(_: object) -> None:
    form_groups(small_config())
    config = GuardConfig(policy="skip", spike=3.0, window=16)
    generator = torch.Generator().manual_seed(6)
    series = (2.0 + 0.1 * torch.randn(60, 2, generator=generator)).tolist()
    series[5][0] = series[25][1] = series[45][0] = float("inf")
    whole = Guard(config, current_device())
    decisions = [bool(whole.judge(n, torch.tensor(a), torch.tensor(b))) for n, (a, b) in enumerate(series, 1)]
    for stop in (3, 12, 26, 40):
        first, second = Guard(config, current_device()), Guard(config, current_device())
        for number, (a, b) in enumerate(series[:stop], 1):
            first.judge(number, torch.tensor(a), torch.tensor(b))
        first.look()
        second.resume(first.state())
        found = [bool(second.judge(n, torch.tensor(a), torch.tensor(b))) for n, (a, b) in enumerate(series[stop:], 1)]
        assert found == decisions[stop:], stop
        assert second.check(60).total == sum(decisions)


def test_a_resumed_guard_decides_alike():
    run_ranks(decisions_after_a_resume, 1, None)


def test_samples_of_an_update_know_its_number():
    # The faults above are told by it.
    assert global_batch(small_config(), 7).update == 7
