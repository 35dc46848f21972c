"""The grid file: its cells by enumeration, its rules, its refusals."""

import itertools

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from card_scale.errors import ConfigurationError
from card_scale.studies.grid import AXES, cells, load

LISTS = st.lists(st.integers(1, 50), min_size=1, max_size=3, unique=True)


@given(arms=st.integers(1, 3), unique=LISTS, epochs=LISTS, seeds=LISTS, decay=LISTS)
def test_without_rules_the_cells_are_the_product(tmp_path_factory, arms, unique, epochs, seeds, decay):
    names = [f"arm{number}" for number in range(arms)]
    tree = {
        "config": "c.yaml",
        "arms": {name: {} for name in names},
        "sizes": {"a": {}, "b": {}},
        "unique_tokens": unique,
        "epochs": epochs,
        "seed": seeds,
        "weight_decay": decay,
        "hardware": {"flops_per_second": 1},
    }
    path = tmp_path_factory.mktemp("grid") / "grid.yaml"
    path.write_text(yaml.safe_dump(tree))
    expected = set(itertools.product(names, "ab", unique, epochs, decay, seeds))
    found = cells(load(path))
    assert {(c.arm, c.size, c.unique_tokens, c.epochs, c.weight_decay, c.seed) for c in found} == expected
    assert len(found) == len(expected)
    assert all(cell.lr is None and cell.dropout is None for cell in found)


def test_the_last_rule_that_matches_decides(write_grid):
    rules = [
        {"where": {"arm": "card"}, "epochs": [4, 16]},
        {"where": {"epochs": 4}, "seed": [1, 2, 3]},
        {"where": {"epochs": [4], "arm": ["card"]}, "seed": [7]},
    ]
    found = {(cell.arm, cell.epochs, cell.seed) for cell in cells(load(write_grid(rules=rules)))}
    assert found == {("ar", 1, 1), ("ar", 4, 1), ("ar", 4, 2), ("ar", 4, 3), ("card", 4, 7), ("card", 16, 1)}


def test_an_empty_list_leaves_cells_out(write_grid):
    found = cells(load(write_grid(rules=[{"where": {"arm": "card"}, "epochs": []}])))
    assert {cell.arm for cell in found} == {"ar"}


def test_numbers_may_be_written_like_text(write_grid):
    found = cells(load(write_grid(lr=["3e-4", 1e-3], unique_tokens=[9.61e2])))
    assert {cell.lr for cell in found} == {3e-4, 1e-3}
    assert {cell.unique_tokens for cell in found} == {961}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seeds": [1]}, "unknown key 'seeds'; did you mean seed"),
        ({"arms": None}, "arms is missing"),
        ({"arms": {}}, "arms is empty"),
        ({"arms": {"a b": {}}}, "arms.a b: a name takes letters"),
        ({"arms": {"ar": {"optimizer.lr": 1}}}, "arms.ar sets optimizer.lr, which the axis lr decides"),
        ({"overrides": {"run.dir": "x"}}, "which the study's directory decides"),
        ({"overrides": {"optimizer.schedule": "wsd"}}, "which schedule decides"),
        ({"schedule": "wsd-branch"}, "did you mean wsd-branches"),
        ({"epochs": ["four"]}, r"epochs\[0\] is 'four', not a number"),
        ({"seed": [1.5]}, r"seed\[0\] is 1.5, not a whole number"),
        ({"epochs": [True]}, "not a number"),
        ({"epochs": [10**400]}, "epochs.0. is 1000+, not a number"),
        ({"epochs": [4, 4]}, "the same cell twice"),
        ({"epochs": []}, "no cell is left"),
        ({"rules": {"where": {}}}, "rules is not a list"),
        ({"rules": [{"where": {"arm": "cart"}, "seed": [2]}]}, "names 'cart'; did you mean card"),
        (
            {"rules": [{"where": {"arm": [["card"]]}, "seed": [2]}]},
            r"rules\[0\].where.arm names \['card'\]; did you mean",
        ),
        ({"rules": [{"where": {"size": {"s": 1}}, "seed": [2]}]}, r"rules\[0\].where.size names \{'s': 1\}; valid: s"),
        (
            {"rules": [{"where": {"epochs": [[1]]}, "seed": [2]}]},
            r"rules\[0\].where.epochs\[0\] is \[1\], not a number",
        ),
        ({"rules": [{"where": {"arms": "card"}, "seed": [2]}]}, "unknown axis 'arms'; did you mean arm"),
        ({"rules": [{"where": {"arm": "card"}}]}, "sets no axis"),
        ({"rules": [{"where": {"seed": 1}, "epochs": [2]}]}, "sets epochs where seed"),
        ({"rules": [{"where": {"epochs": 3}, "seed": [2]}]}, "matches no cell"),
        ({"ranks": {"t": 2}}, "ranks names 't'"),
        ({"ranks": 0}, "at least 1"),
        ({"evaluations": 0}, "at least 1"),
        ({"warmup_share": 1.0}, r"must be in \[0, 1\)"),
        ({"hardware": None}, "hardware is missing"),
        ({"hardware": {"device": "abacus", "mfu": 0.4}}, "'abacus' is none of H100 PCIe, "),
        ({"hardware": {"device": "NVIDIA H100", "mfu": 0}}, r"hardware.mfu is 0; it must be in \(0, 1\]"),
        ({"hardware": {"device": "NVIDIA H100", "mfu": 40}}, r"hardware.mfu is 40; it must be in \(0, 1\]"),
        ({"hardware": {"flops_per_second": -1}}, "must be positive"),
        ({"hardware": {"flops_per_second": 1e9, "mfu": 0.4}}, "gives flops_per_second and mfu"),
        ({"corpus": {"vocabulary_size": 10}}, "corpus.train_tokens is missing"),
        (
            {"corpus": {"vocabulary_size": 10, "train_tokens": 0, "validation_tokens": 9}},
            "corpus.train_tokens is 0; it must be a whole number of at least 1",
        ),
        ({"slurm": {"gpus": 1}}, "slurm.gpus is 1"),
        ({"overrides": {"run.timeout_seconds": {1, 2}}}, "overrides.run.timeout_seconds is .* takes text"),
    ],
)
def test_refusals_name_the_key_and_what_is_valid(write_grid, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        cells(load(write_grid(**changes)))


def test_an_unreadable_grid_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigurationError, match="holds list"):
        load(tmp_path / "list.yaml")


@pytest.mark.parametrize("again, key", [("epochs: [8]\n", "epochs"), ("arms: {ar: {}, card: {}, ar: {}}\n", "ar")])
def test_a_key_that_stands_twice_is_refused(write_grid, again, key):
    path = write_grid(**({"arms": None} if key == "ar" else {}))
    path.write_text(path.read_text() + again)
    line = len(path.read_text().splitlines())
    with pytest.raises(ConfigurationError, match=rf"grid {path} cannot be read: line {line} repeats the key {key} of"):
        load(path)


def test_axes_are_the_cell():
    from card_scale.studies.grid import Cell

    assert Cell._fields == AXES
