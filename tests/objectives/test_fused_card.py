"""CARD's kernel: interpreted on a CPU it makes what the tensor operations make; launches are few; GPUs' code fits."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from card_scale.objectives import noise
from card_scale.objectives.ar import ArObjective
from card_scale.objectives.card import CardObjective
from tests.objectives.fused import both, check_bits, launches
from tests.objectives.samples import samples_of

pytest.importorskip("triton", reason="make test installs it")
from card_scale.objectives import fused_card

shares = st.floats(0, 1)
weighted = st.fixed_dictionaries({"decay": shares, "beta": st.floats(0.01, 10)})
unweighted = st.fixed_dictionaries({"reweight": st.just(False), "masked_weight": st.floats(0, 10)})
by_level = st.fixed_dictionaries(
    {"masking": st.sampled_from(["soft_tail", "uniform"]), "tail_factor": st.floats(1, 5), "max_noise": st.just(1.0)}
    | {"min_noise": shares}
)
in_spans = st.fixed_dictionaries(
    {"masking": st.just("spans"), "span_rate": st.floats(1e-3, 1), "span_length": st.integers(1, 9)}
)


def check_equal(defined, fused) -> None:
    """All bits but those of the weights, whose sum has another order."""
    check_bits(defined, fused, "inputs", "positions", "targets", "masked", "noise_level")
    torch.testing.assert_close(defined.weights, fused.weights, rtol=2e-6, atol=0)


@given(
    settings_=st.tuples(by_level | in_spans, weighted | unweighted).map(lambda parts: parts[0] | parts[1]),
    ids=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=3),
    epoch=st.integers(0, 2**40),
    length=st.integers(2, 9) | st.sampled_from([63, 64, 65, 200]),
    seed=st.integers(0, 2**62),
    resample=st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_what_the_definition_makes(settings_, ids, epoch, length, seed, resample):
    tokens = torch.arange(len(ids) * (length + 1)).view(len(ids), -1)
    samples = samples_of(tokens, torch.tensor(ids), torch.full((len(ids),), epoch))
    check_equal(*both(CardObjective(**settings_, resample=resample), samples, seed))


@pytest.mark.parametrize(
    "settings_, length",
    [
        ({"decay": 1e-4}, 4096),  # slow: each weight is a sum over all masks before it
        ({"masking": "spans", "span_rate": 0.5, "span_length": 2**40}, 100),  # longer than an int32
    ],
    ids=lambda value: str(value),
)
def test_extremes(settings_, length):
    check_equal(*both(CardObjective(**settings_), samples_of(torch.ones(2, length + 1, dtype=torch.int64)), 5))


def test_ties_go_to_the_lower_place(monkeypatch):
    """Draws of 2 bits alone: nearly all are ties."""
    draw, uniforms = fused_card.draw_at, noise.uniforms
    monkeypatch.setattr(fused_card, "draw_at", lambda *arguments: draw(*arguments) // 2**22 * 2**22)
    monkeypatch.setattr(noise, "uniforms", lambda *arguments: (uniforms(*arguments) * 4).floor() / 4)
    for masking in ("soft_tail", "uniform"):
        defined, fused = both(CardObjective(masking=masking), samples_of(torch.ones(16, 41, dtype=torch.int64)), 3)
        assert len(defined.masked.sum(1).unique()) > 1
        check_equal(defined, fused)


def test_rows_that_are_not_contiguous():
    wide = torch.arange(3 * 40).view(3, 40)
    ids = torch.arange(12).view(6, 2)[:3, 0]
    check_equal(*both(CardObjective(), samples_of(wide[:, 3:20], ids, ids + 1), 1))


def test_what_is_too_long_for_a_program_is_left_to_tensor_operations(monkeypatch):
    monkeypatch.setattr("card_scale.objectives.card.LONGEST_FUSED", 16)
    monkeypatch.setattr(fused_card, "corrupted", None)
    monkeypatch.setattr(noise, "uniforms", lambda _seed, ids, _epochs, length, _stream: torch.rand(len(ids), length))
    monkeypatch.setattr(noise, "is_fused", lambda _: True)
    CardObjective().corrupt(samples_of(torch.ones(2, 18, dtype=torch.int64)), 1)


@pytest.mark.parametrize("masking", ["soft_tail", "uniform", "spans"])
def test_card_launches_no_more_than_ar(masking):
    assert launches(CardObjective(masking=masking), fused_card, "_corrupt") == 2  # the positions, and the kernel
    assert launches(ArObjective(), fused_card, "_corrupt") == 4


def test_the_rule_is_of_the_objectives_fields():
    assert set(fused_card.Rule._fields) <= {field.name for field in dataclasses.fields(CardObjective)}


def test_every_kernel_of_the_project_compiles_for_gpus_and_hardly_spills():
    """Also where there is none: Triton brings the compiler. The longest rows in spans spill some words."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.compiled_for_gpu", "90"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    taken = json.loads(done.stdout.splitlines()[-1])
    assert {name.split()[0] for name in taken} == {
        "_uniforms",
        "_corrupt",
        "_mask_independently",
        "_statistics",
        "_gradient_in_place",
    }
    for name, resources in taken.items():
        spilled = int(re.search(r"STACK:(\d+) .*LOCAL:0 ", resources)[1])
        assert spilled <= 128, f"{name}: {resources}"
