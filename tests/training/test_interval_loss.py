"""The mean loss between two log lines, against a loop, and through a resume."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from card_scale.training.interval_loss import IntervalLoss

UPDATES = st.tuples(st.floats(0, 20), st.floats(0.5, 1e5), st.booleans())
"""(loss, normaliser, whether refused)"""


def add(interval, updates):
    for loss, normaliser, refused in updates:
        told = math.nan if refused else loss
        interval.add(torch.tensor(told).double(), torch.tensor(normaliser).double(), torch.tensor(refused))


def mean_of(updates):
    applied = [(loss, weight) for loss, weight, refused in updates if not refused]
    return sum(torch.tensor(loss).double().item() * weight for loss, weight in applied) / sum(w for _, w in applied)


@given(st.lists(UPDATES, min_size=1, max_size=8), st.lists(UPDATES, max_size=8))
def test_each_interval_is_the_mean_of_its_own_applied_updates(first, second):
    interval = IntervalLoss()
    for updates in (first, second):
        add(interval, updates)
        found = interval.take()
        if all(refused for *_, refused in updates):
            assert found is None
        else:
            assert found == pytest.approx(mean_of(updates), rel=1e-6)


@given(st.lists(UPDATES, min_size=2, max_size=8), st.integers(1, 7))
def test_a_run_that_resumes_within_an_interval_logs_the_same_bits(updates, cut):
    whole, before, after = (IntervalLoss() for _ in range(3))
    add(whole, updates)
    add(before, updates[:cut])
    after.resume(before.state())
    add(after, updates[cut:])
    assert after.take() == whole.take()


def test_a_checkpoint_of_an_earlier_version_begins_anew():
    interval = IntervalLoss()
    interval.resume({"step": 3})
    assert interval.take() is None
