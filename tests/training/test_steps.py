"""Updates of a run, against counting with whole numbers."""

import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from card_scale.config import Config
from card_scale.errors import ConfigurationError
from card_scale.training.steps import is_due, times_due, total_steps


def steps_of(epochs, samples, batch, steps=None, length=8):
    config = Config()
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, length=length),
        data=dataclasses.replace(config.data, epochs=epochs),
        train=dataclasses.replace(config.train, global_batch=batch, micro_batch=batch, steps=steps),
    )
    return total_steps(config, samples)


# In float64 0.29 * 100 is 28.999999999999996 and 1.1 * 10 is 11.000000000000002; 0.57 * 100 is 56.99999999999999.
@pytest.mark.parametrize(
    "epochs, samples, batch, expected",
    [(0.29, 100, 1, 29), (0.29, 100, 29, 1), (1.1, 10, 11, 1), (0.57, 100, 57, 1), (2.5, 63, 157, 1), (4.0, 40, 8, 20)],
)
def test_decimal_epochs_are_exact_and_the_last_part_of_a_batch_is_dropped(epochs, samples, batch, expected):
    assert steps_of(epochs, samples, batch) == expected


# 49.5 and 157.5 samples, which rounding would make a whole batch.
@pytest.mark.parametrize("epochs, samples, batch", [(0.5, 99, 50), (2.5, 63, 158), (0.29, 100, 30)])
def test_part_of_a_sample_is_no_sample(epochs, samples, batch):
    message = rf"data\.epochs {epochs} of {samples} samples are less than one train\.global_batch of {batch}"
    with pytest.raises(ConfigurationError, match=message):
        steps_of(epochs, samples, batch)


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 1000))
def test_any_number_of_thousandths_of_an_epoch(thousandths, samples, batch):
    expected = thousandths * samples // 1000 // batch
    if expected:
        assert steps_of(thousandths / 1000, samples, batch) == expected
    else:
        with pytest.raises(ConfigurationError, match="less than one"):
            steps_of(thousandths / 1000, samples, batch)


def test_steps_that_are_given():
    assert steps_of(None, 100, 8, steps=7) == 7
    assert steps_of(2.0, 100, 8, steps=25) == 25
    with pytest.raises(ConfigurationError, match=r"train\.steps is 24, but data\.epochs 2\.0 .* are 25 steps"):
        steps_of(2.0, 100, 8, steps=24)


def test_as_many_tokens_as_a_float64_counts():
    assert steps_of(2.0, 2**49, 1, length=8) == 2**50
    for epochs in (2.001, 1e300, 1e308):
        with pytest.raises(ConfigurationError, match=r"data\.epochs .* tokens; a run has at most 2\^53"):
            steps_of(epochs, 2**49, 1, length=8)


def test_counting_updates_needs_no_torch():
    code = "import sys, card_scale.training.steps; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


@given(st.tuples(st.integers(0, 40), st.integers(1, 40)).map(sorted), st.integers(0, 12))
def test_times_due_counts_the_steps_that_are(bounds, every):
    after, total = bounds
    assert times_due(after, every, total) == sum(is_due(step, every, total) for step in range(after + 1, total + 1))
