"""The mean loss of an interval on real updates: any layout, and against the updates one by one."""

import pytest
import torch

from card_scale.training.train_step import TrainStep
from tests.layouts.processes import run_ranks
from tests.layouts.trajectory import engine_of, form_groups, global_batch, rank_batch, small_config

LOGGED = (3, 5)


def interval_losses(config) -> tuple[list[float], list[float]]:
    """Return (loss of each update, mean loss of each interval) of five updates."""
    form_groups(config)
    update = TrainStep(engine_of(config), config.objective, config)
    losses, means = [], []
    for step in range(1, 6):
        result = update(rank_batch(config, step - 1), config.optimizer.lr)
        report = update.report(step, result, is_logged=step in LOGGED)
        losses.append(report.loss)
        if step in LOGGED:
            means.append(report.interval_loss)
        else:
            assert report.interval_loss is None
    return losses, means


def normaliser(config, step: int) -> float:
    """Of CARD, by its definition: the sum of the global batch's weights."""
    return config.objective.corrupt(global_batch(config, step - 1), config.run.seed).weights.double().sum().item()


def test_an_interval_is_the_mean_of_its_updates_by_their_weights():
    config = small_config(parallel=dict(zero=0))
    ((losses, means),) = run_ranks(interval_losses, 1, config, deadline=60)
    first = 0
    for last, mean in zip(LOGGED, means, strict=True):
        steps = range(first + 1, last + 1)
        weights = [normaliser(config, step) for step in steps]
        expected = sum(losses[step - 1] * weight for step, weight in zip(steps, weights, strict=True)) / sum(weights)
        assert mean == pytest.approx(expected, rel=1e-9)
        assert mean != pytest.approx(losses[last - 1], rel=1e-7)
        assert len(set(weights)) > 1
        first = last
    for layout in (dict(pipeline=2, zero=1), dict(tensor=2, engine="fsdp2")):
        other = small_config(parallel=layout)
        for _, elsewhere in run_ranks(interval_losses, 4, other, deadline=90):
            assert elsewhere == pytest.approx(means, rel=1e-5)


def with_a_refused_update(config) -> list[float]:
    """Return [loss of the first update, mean of an interval of it and a refused one]."""
    form_groups(config)
    update = TrainStep(engine_of(config), config.objective, config)
    first = update.report(1, update(rank_batch(config, 0), 1e-3), is_logged=False)
    judge = update.guard.judge

    def refuse(step, _loss, norm):
        return judge(step, torch.tensor(torch.nan), norm)

    update.guard.judge = refuse
    report = update.report(2, update(rank_batch(config, 1), 1e-3), is_logged=True)
    assert not report.applied
    return [first.loss, report.interval_loss]


def test_what_was_not_applied_does_not_count():
    config = small_config(parallel=dict(zero=0), guard=dict(policy="skip"))
    ((loss, mean),) = run_ranks(with_a_refused_update, 1, config, deadline=60)
    assert mean == pytest.approx(loss, rel=1e-12)
