"""tools/fit_scaling_law.py --budget: how a fitted law spends FLOPs."""

import json
import math
import re

import numpy as np
import pytest

from card_scale.laws import formulas as laws
from card_scale.laws.allocation import compute_optimal
from tests.laws.datablations import PUBLISHED
from tests.laws.test_tool import row, write


@pytest.fixture
def noisy_table(tmp_path):
    draws = np.random.default_rng(0)
    rows = [
        row(size, tokens, tokens, float(laws.chinchilla(PUBLISHED, size, tokens)) * math.exp(2e-4 * draws.normal()))
        for size in (1e7, 1e8, 1e9)
        for tokens in (1e8, 1e9, 1e10)
    ]
    return write(tmp_path / "table.csv", rows)


def test_how_to_spend_a_budget(tool, tmp_path, noisy_table):
    out = tmp_path / "fit.json"
    fit = [noisy_table, "--starts", 8, "--bootstrap", 40, "--json", out]
    code, said, _ = tool(*fit, "--form", "chinchilla", "--budget", 1e21, 1e19)
    assert code == 0
    assert "[central 95 % of the resamples]" in said
    assert "no more than a guess" not in said
    small, large = json.loads(out.read_text(encoding="utf-8"))["budgets"]
    assert (small["budget"], large["budget"], large["unique"]) == (1e19, 1e21, None)
    assert large["beyond"] == pytest.approx(1e21 / 6e19)
    for found in (small, large):
        true = compute_optimal(PUBLISHED, found["budget"])
        assert found["parameters"] == pytest.approx(true.parameters, rel=0.2)
        for name, value in true._asdict().items():
            low, high = found[f"{name}_interval"]
            assert low < found[name] < high
            assert low * 0.98 < value < high * 1.02
    # Without a repeated token nothing is known of repetition.
    code, said, _ = tool(*fit, "--fix", "R_N=inf", "--budget", 1e22, "--unique", 1e10)
    assert code == 0
    assert "rests on constants that these runs do not identify (R_D)" in said
    (found,) = json.loads(out.read_text(encoding="utf-8"))["budgets"]
    assert found["epochs"] == pytest.approx(found["tokens"] / 1e10)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--form", "envelope", "--budget", 1e20], "--budget goes with the laws chinchilla, data-constrained"),
        (["--budget", 1e20], "--unique goes with --budget and --form data-constrained, which needs it"),
        (["--form", "chinchilla", "--budget", 1e20, "--unique", 1e9], "--unique goes with --budget and --form data"),
        (["--unique", 1e9], "--unique goes with --budget"),
        (["--budget", 0], "--budget: .*0"),
    ],
)
def test_a_budget_that_no_law_spends(tool, noisy_table, options, message):
    code, _, error = tool(noisy_table, *options)
    assert code == 2
    assert re.search(message, error)
