"""The cost benchmark runs, and its statistics are right. (Its figures belong into benchmarks/, not into a test.)"""

import json

import numpy as np
import pytest
import torch.distributed as dist

from card_scale.benchmark.objective_cost import Cost, as_json, measure, report, utilisation
from card_scale.parallel import process_groups, topology
from tests.layouts.processes import run_ranks
from tests.layouts.trajectory import small_config


def test_the_interval_holds_the_median_of_the_pairs():
    generator = np.random.default_rng(1)
    ar = generator.uniform(0.9, 1.1, 200)
    card = ar * generator.normal(1.01, 0.02, 200)
    cost = Cost(ar.tolist(), card.tolist(), [0.001] * 200)
    median, low, high = cost.interval()
    assert low < median < high
    assert median == pytest.approx(1.01, abs=0.01)
    assert high - low < 0.02
    assert cost.corruption_share() == pytest.approx(0.001 / np.median(ar))


def measured(config) -> tuple[str, str]:
    process_groups.form(topology.plan(config, dist.get_world_size()), 60)
    cost = measure(config, 250, pairs=3, warm_up=1)
    assert len(cost.ar_seconds) == len(cost.card_seconds) == len(cost.corruption_seconds) == 3
    used = utilisation(config, 250, cost)
    return report(config, cost, used), as_json(config, cost, used)


def test_it_measures_both_objectives_on_one_model():
    text, record = run_ranks(measured, 2, small_config(parallel=dict(pipeline=2)), deadline=60)[0]
    assert "CARD / AR" in text
    content = json.loads(record)
    assert content["card_over_ar"]["low"] <= content["card_over_ar"]["median"] <= content["card_over_ar"]["high"]
    assert content["environment"]["commit"]
