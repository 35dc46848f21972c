"""The decomposition of a ratio adds up, and says so when it does not; the operations behind it, counted by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from card_scale.benchmark.arms import Arm, config_of
from card_scale.benchmark.decomposition import check_adds_up, explain
from card_scale.benchmark.instruments import PARTS
from card_scale.cost.flops import Work, training_work
from card_scale.errors import NumericError
from tests.layouts.trajectory import small_config

SECONDS = st.fixed_dictionaries({part: st.floats(1e-3, 10) for part in PARTS})
WORK = Work(6.0, 3.0, 1.0)


@given(SECONDS, SECONDS, st.floats(1e-3, 10), st.floats(1e-3, 10))
def test_shares_and_the_unexplained_make_the_ratio(parts, base, step, base_step):
    found = explain(parts, base, step=step, base_step=base_step, work=WORK, base_work=WORK)
    assert 1.0 + sum(found.shares.values()) + found.unexplained == pytest.approx(step / base_step, rel=1e-9, abs=1e-9)


def test_parts_that_make_the_steps_explain_everything():
    parts = dict(layers=4.0, attention=3.0, head=1.0, rest=0.5)
    base = dict(layers=2.0, attention=1.0, head=1.0, rest=0.25)
    found = explain(parts, base, step=8.5, base_step=4.25, work=Work(12.0, 6.0, 1.0), base_work=WORK)
    assert found.ratio == 2.0
    assert found.unexplained == pytest.approx(0.0, abs=1e-12)
    assert found.adds_up_to == pytest.approx(1.0)
    assert found.shares["attention"] == pytest.approx(2.0 / 4.25)
    assert found.flops_shares == {"layers": 0.6, "attention": 0.3, "head": 0.0}
    assert found.flops_ratio == 1.9


def test_sums_off_the_whole_are_refused_by_name():
    check_adds_up({"card": 1.05, "ar": 0.96}, 0.0500001)
    with pytest.raises(NumericError, match=r"within 5%.*card 1\.060, mdlm nan"):
        check_adds_up({"card": 1.06, "ar": 1.0, "mdlm": float("nan")}, 0.05)


def visible_pairs(name: str, length: int, block: int, *, noisy_only: bool) -> float:
    """Count (query, key) pairs one by one; half of the diagonal for causal attention, as the convention has it."""
    if name == "mdlm":
        return length**2
    if name != "bd3lm":
        return sum(position + 0.5 for position in range(length))
    pairs = 0
    for query in range(length):
        for key in range(length):
            pairs += query // block == key // block  # noisy sees its own noisy block
            pairs += query // block > key // block  # and clean ones before it
            pairs += (not noisy_only) and query // block >= key // block  # clean sees clean up to its own
    return pairs


@pytest.mark.parametrize(
    "name, block", [("ar", 0), ("card", 0), ("mdlm", 0), ("bd3lm", 1), ("bd3lm", 4), ("bd3lm", 16)]
)
def test_operations_are_those_of_every_matrix_and_pair(name, block):
    config = config_of(Arm(name, block=block), small_config())
    model, rows = config.model, 256
    layers = attention = 0.0
    for layer in range(model.layers):
        last = layer == model.layers - 1
        for clean in (False, True) if name == "bd3lm" else (False,):
            matrices = {"query": model.hidden, "key": model.hidden, "value": model.hidden, "out": model.hidden}
            matrices |= dict.fromkeys(("gate", "up", "down"), model.ffn)
            needed = ("key", "value") if last and clean else matrices
            layers += sum(2 * 3 * model.hidden * matrices[name] for name in needed) * model.length
        pairs = visible_pairs(name, model.length, block, noisy_only=last)
        attention += pairs * 2 * 2 * 3 * model.hidden
    head = 2 * 3 * model.hidden * rows * model.length
    work = training_work(model, config.objective.attention, rows)
    assert work == pytest.approx([part / model.length for part in (layers, attention, head)], rel=1e-12)
