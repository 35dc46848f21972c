"""tools/fit_scaling_law.py, tools/identifiability.py and what tools/repetition_report.py refuses, by command line."""

import csv
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from card_scale.laws import formulas as laws
from tests.laws.datablations import PATH, PUBLISHED

TOOLS = Path(__file__).parents[2] / "tools"


def write(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def row(size, tokens, unique, loss, **cells):
    return {"params_N": size, "tokens_D": tokens, "unique_tokens_U": unique, "val_loss": loss, **cells}


def test_the_public_table_is_said_not_to_identify_r_d(tool, tmp_path):
    out, figure = tmp_path / "fit.json", tmp_path / "fit.png"
    code, said, _ = tool(
        PATH, "--where", "in_published_182_fit=1", "--constants", "muennighoff-c4", "--bootstrap", 40,
        "--hold-out", 20, "--profile", "--json", out, "--plot", figure,
    )  # fmt: skip
    assert code == 0
    assert "Identified by these runs: none." in said
    assert re.search(r"R_D: no value above [34](\.\d+)? is rejected, infinity included", said)
    assert "distinct minima were found" in said
    assert "0.015825932  15.37" in said
    assert "profile of R_D" in said
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["objective"] == pytest.approx(0.0158047, abs=5e-8)
    assert found["constants"]["R_D"]["verdict"] == "not identified"
    assert found["constants"]["R_D"]["high"] == "inf"
    assert found["hold_out"]["runs"] == 20
    assert found["residual_pattern"]["found"]
    assert len(found["profiles"]["R_N"]["values"]) == len(found["profiles"]["R_N"]["objectives"])
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_a_grid_that_identifies_everything(tool, tmp_path):
    draws = np.random.default_rng(0)
    rows = []
    for size in (3e7, 1e8, 3e8, 1e9):
        for unique in (1e8, 4e8):
            for tokens in unique * 2.0 ** np.arange(8):
                loss = float(laws.data_constrained(PUBLISHED, size, tokens, unique))
                rows.append(row(size, tokens, unique, loss * math.exp(1e-4 * draws.standard_normal())))
    code, said, _ = tool(write(tmp_path / "table.csv", rows), "--bootstrap", 0, "--starts", 16)
    assert code == 0
    assert "Identified by these runs: A, B, E, alpha, beta, R_D, R_N." in said
    assert "Not identified" not in said


@pytest.mark.parametrize("noise, all_identified", [(0.0, True), (0.05, False)])
def test_chinchilla_by_least_squares_stands_beside_interval_and_verdict(tool, tmp_path, noise, all_identified):
    draws = np.random.default_rng(0)
    rows = [
        row(size, tokens, tokens, float(laws.chinchilla(PUBLISHED, size, tokens)) * math.exp(noise * draws.normal()))
        for size in (1e7, 1e8, 1e9)
        for tokens in (1e8, 1e9, 1e10)
    ]
    out = tmp_path / "fit.json"
    code, said, _ = tool(
        write(tmp_path / "table.csv", rows), "--form", "chinchilla", "--starts", 8, "--bootstrap", 0, "--json", out
    )
    assert code == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    projected, fitted = found["variable_projection"], found["constants"]
    for name, one in projected.items():
        judged = fitted[name]
        assert one["factor"] == pytest.approx(one["at_minimum"] / judged["at_minimum"])
        assert (one["low"], one["high"], one["verdict"]) == (judged["low"], judged["high"], judged["verdict"])
        assert one["inside_interval"] == (judged["low"] <= one["at_minimum"] <= float(judged["high"]))
    assert all(one["verdict"] == "identified" for one in projected.values()) == all_identified
    if not noise:
        assert projected["alpha"]["at_minimum"] == pytest.approx(PUBLISHED["alpha"])
    # The text has how far each constant lies from the fit's, never a value without its interval.
    table = said[said.index("variable projection") :].splitlines()[2:7]
    assert [line.split()[0] for line in table] == ["A", "B", "E", "alpha", "beta"]
    for line in table:
        one = projected[line.split()[0]]
        inside = "yes" if one["inside_interval"] else "NO"
        assert line.split(maxsplit=3)[1:] == [f"{one['factor']:.4g}", inside, one["verdict"]]


def test_envelope_and_isoflops(tool, tmp_path):
    rows = []
    for budget in (1e19, 3e19, 1e20, 3e20):
        for size in np.logspace(8, 9.5, 7):
            tokens = budget / 6 / size
            rows.append(row(size, tokens, tokens, float(laws.chinchilla(PUBLISHED, size, tokens))))
    table, out = write(tmp_path / "table.csv", rows), tmp_path / "fit.json"
    code, said, _ = tool(table, "--form", "isoflop", "--json", out)
    assert code == 0
    assert "N_opt = k times a power of C" in said
    exponent = json.loads(out.read_text(encoding="utf-8"))["sizes"]["exponents"]["C"]
    assert exponent["at_minimum"] == pytest.approx(0.5, abs=0.05)
    assert exponent["verdict"] == "identified"
    assert re.search(r"exponent of C  \[0\.\d+, 0\.\d+\] +\(0\.\d+\) +identified", said)
    code, said, _ = tool(table, "--form", "envelope", "--bootstrap", 20, "--json", out)
    assert code == 0
    assert "approach 1" in said
    found = json.loads(out.read_text(encoding="utf-8"))
    # Resamples of seven sizes often leave too few that are best anywhere.
    assert found["sizes"]["exponents"]["C"]["verdict"] in ("identified", "not identified")
    assert found["sizes"]["k"]["verdict"] == "not identified"
    assert "k: " in said


def test_two_budgets_give_isoflop_exponents_without_an_interval(tool, tmp_path):
    rows = []
    for budget in (1e19, 1e20):
        for size in np.logspace(8, 9.5, 7):
            tokens = budget / 6 / size
            rows.append(row(size, tokens, tokens, float(laws.chinchilla(PUBLISHED, size, tokens))))
    code, said, _ = tool(write(tmp_path / "table.csv", rows), "--form", "isoflop")
    assert code == 0
    assert re.search(r"exponent of C  \(-inf, inf\)  \(0\.\d+\) +NOT IDENTIFIED", said)
    assert "exponent of C: no value is rejected" in said


def turning(size, unique, optimum):
    return [
        row(size, e * unique, unique, 3 + 0.01 * math.log(e / optimum) ** 2) for e in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
    ]


@pytest.mark.parametrize(
    "ladders, reason",
    [
        ([(1e6, 1e7, 5.0)], "1 of 1 ladders show the turn, a law needs at least 2"),
        ([(1e6, 1e7, 0.1), (1e7, 1e7, 5.0)], "1 of 2 ladders show the turn, a law needs at least 2"),
        ([(1e6, 1e7, 5.0), (1e7, 1e8, 9.0)], "2 points do not determine the exponents of U, N"),
        (
            [(1e6, 1e7, 5.0), (1e7, 1e8, 9.0), (1e8, 1e9, 15.0)],
            "3 points do not determine the exponents of U, N; at least 3 points that differ in each",
        ),
    ],
)
def test_optimal_epochs_without_a_law_still_lists_the_ladders(tool, tmp_path, ladders, reason):
    rows = [one for each in ladders for one in turning(*each)]
    out = tmp_path / "fit.json"
    code, said, _ = tool(write(tmp_path / "table.csv", rows), "--form", "optimal-epochs", "--json", out)
    assert code == 0
    assert f"the power law of the optimal epochs is not identified: {reason}" in said
    found = json.loads(out.read_text(encoding="utf-8"))
    assert (len(found["ladders"]), found["law"]) == (len(ladders), None)
    assert reason in found["no_law"]


def test_optimal_epochs_on_one_subset_are_a_law_of_the_size(tool, tmp_path):
    rows = [one for size, optimum in ((1e6, 12.0), (1e7, 6.0), (1e8, 3.0)) for one in turning(size, 1e8, optimum)]
    out = tmp_path / "fit.json"
    code, said, _ = tool(write(tmp_path / "table.csv", rows), "--form", "optimal-epochs", "--json", out)
    assert code == 0
    assert "the number of unique tokens is the same in all ladders that show the turn: U is left out of the law" in said
    assert "e_opt = k times a power of N" in said
    (exponent,) = json.loads(out.read_text(encoding="utf-8"))["law"]["exponents"].values()
    assert exponent["at_minimum"] == pytest.approx(-math.log10(2))
    assert exponent["verdict"] == "identified"


def crossing_rows(crossings, objectives=(("ar", 0.1, False), ("mdlm", 0.3, True))):
    """Runs of two objectives that cross at so many FLOPs on each number of unique tokens."""
    rows = []
    for unique, crossing in crossings:
        for compute in crossing * np.logspace(-1, 1, 9):
            away = math.log10(compute / crossing)
            size = compute / 6 / (unique * 100)
            for objective, slope, bound in objectives:
                loss = 4.0 - slope * away
                rows.append(row(size, unique * 100, unique, loss, objective=objective, bound=bound, flops=compute))
    return rows


def test_crossover_of_two_objectives(tool, tmp_path):
    table = write(tmp_path / "table.csv", crossing_rows([(1e6, 1e18), (4e6, 1e19)]))
    out = tmp_path / "fit.json"
    code, said, _ = tool(table, "--form", "crossover", "--objective", "ar", "mdlm", "--bootstrap", 200, "--json", out)
    assert code == 0
    assert "the losses of mdlm are upper bounds" in said
    assert "left out" not in said
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [one["compute"] for one in found["crossovers"]] == pytest.approx([1e18, 1e19])
    assert [(one["carried"], one["left_out_of_law"]) for one in found["crossovers"]] == [(False, "")] * 2
    assert found["law"]["exponents"]["U"]["at_minimum"] == pytest.approx(math.log(10) / math.log(4))
    code, _, error = tool(table, "--form", "chinchilla")
    assert code == 4
    assert "objective is mixed" in error


def test_a_sweep_is_refused_or_reduced_to_the_best_setting(tool, tmp_path):
    rows = []
    for epochs, low in ((1, 0.4), (2, 0.1), (4, 0.1), (8, 0.4), (16, 0.4)):
        for decay in (0.1, 0.4):
            loss = 3 + 0.01 * math.log(epochs / 5) ** 2 + (0.5 if decay != low else 0.0)
            rows.append(row(1e6, epochs * 1e7, 1e7, loss, weight_decay=decay))
    table, out = write(tmp_path / "table.csv", rows), tmp_path / "fit.json"
    code, _, error = tool(table, "--form", "optimal-epochs")
    assert code == 4
    assert "row 1 and" in error
    assert "weight_decay is 0.1 and 0.4" in error
    assert "--where" in error
    assert "--best-setting" in error
    code, said, _ = tool(table, "--form", "optimal-epochs", "--best-setting", "--json", out)
    assert code == 0
    assert "left out as other settings than the best of their cell: 5 runs" in said
    # The losses without the half that the worse setting costs are a parabola in log epochs around 5.
    assert json.loads(out.read_text(encoding="utf-8"))["ladders"][0]["epochs"] == pytest.approx(5.0)
    code, said, _ = tool(table, "--form", "optimal-epochs", "--where", "weight_decay=0.1")
    assert code == 0
    assert "left out" not in said


def test_crossovers_outside_the_runs_are_said_to_be_so_and_make_no_law(tool, tmp_path):
    rows = crossing_rows([(1e6, 1e18), (4e6, 1e19)])
    # On the larger subset mdlm stays behind, and ar turns where mdlm still falls.
    for one in rows:
        if one["unique_tokens_U"] == 4e6:
            one["val_loss"] += 1.0 if one["objective"] == "mdlm" else 0.0
            one["val_loss"] += 0.5 if one["objective"] == "ar" and one["flops"] > 3e19 else 0.0
    rows = [one for one in rows if not (one["objective"] == "ar" and one["flops"] > 8e19)]
    out = tmp_path / "fit.json"
    table = write(tmp_path / "table.csv", rows)
    code, said, _ = tool(table, "--form", "crossover", "--objective", "ar", "mdlm", "--bootstrap", 200, "--json", out)
    assert code == 0
    assert "not within the runs (ar: up to 1e+20 FLOPs)" in said
    assert "U = 4e+06: the runs of ar of most compute are not its best" in said
    assert "left out of the law: U = 4e+06, the curves do not cross within the runs" in said
    assert "C_crit is not identified: 1 points do not determine" in said
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["law"] is None
    assert [one["carried"] for one in found["crossovers"]] == [False, True]


def test_a_subset_without_a_crossover_is_reported_beside_the_others(tool, tmp_path):
    rows = crossing_rows([(1e6, 1e18), (4e6, 1e19), (16e6, 1e20)])
    # Two runs of ar are no curve.
    few = [one for one in rows if one["unique_tokens_U"] == 4e6 and one["objective"] == "ar"][2:]
    rows = [one for one in rows if one not in few]
    table, out = write(tmp_path / "table.csv", rows), tmp_path / "fit.json"
    arguments = ("--form", "crossover", "--objective", "ar", "mdlm", "--bootstrap", 200, "--json", out)
    code, said, _ = tool(table, *arguments)
    assert code == 0
    assert "no crossover: 2 computes of the base on 4e+06 unique tokens" in said
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [one["unique"] for one in found["crossovers"]] == [1e6, 16e6]
    assert len(found["no_crossover"]) == 1
    assert found["law"]["exponents"]["U"]["at_minimum"] == pytest.approx(math.log(100) / math.log(16))
    code, _, error = tool(table, *arguments, "--where", "unique_tokens_U=4e6")
    assert code == 4
    assert "ar and mdlm cannot be compared: 2 computes of the base" in error


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (("--form", "practical"), 3, "needs L0 given"),
        (("--fix", "R_D"), 3, "--fix R_D is not NAME=VALUE"),
        (("--fix", "R_D=many"), 3, "many is no number"),
        (("--where", "note=none"), 3, "no row has note = 'none'"),
        (("--objective", "ar"), 3, "no column objective"),
        (("--column", "val_loss=nll"), 3, "no column nll"),
        (("--form", "crossover"), 2, "needs --objective BASE CHALLENGER"),
        (("--form", "isoflop", "--plot", "x.png"), 2, "--plot, --profile, --hold-out and --fix go with the laws"),
        (("--starts", "0"), 2, "argument --starts: 0 is not at least 1"),
        (("--level", "nan"), 2, "--level is between 0 and 1"),
        (("--seed", "-1"), 2, "argument --seed: -1 is negative"),
        (("--bootstrap", "-1"), 2, "argument --bootstrap: -1 is negative"),
        (("--hold-out", "-1"), 2, "argument --hold-out: -1 is negative"),
        (("--plot", "x.xyz"), 2, "argument --plot: x.xyz does not end in .pdf, .png, .svg"),
        (("--plot", "x"), 2, "argument --plot: x does not end in"),
        (("--plot", "none/x.png"), 2, "argument --plot: none/x.png: there is no directory none"),
        (("--json", "none/x.json"), 2, "argument --json: none/x.json: there is no directory none"),
        (("--json", "."), 2, "argument --json: . is a directory"),
    ],
)
def test_refusals(tool, monkeypatch, tmp_path, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    ended, said, error = tool(PATH, *arguments)
    assert (ended, message in error) == (code, True), error
    assert said == ""


def test_a_figure_needs_matplotlib_before_the_fit(tool, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, error = tool(PATH, "--plot", "x.png")
    assert (code, "figures need matplotlib" in error) == (2, True), error


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--repetitions", 0), "argument --repetitions: 0 is not at least 1"),
        (("--epochs", 4, 0), "argument --epochs: 0 is not at least 1"),
        (("--noise", "nan"), "argument --noise: nan is not a finite number of at least 0"),
        (("--noise", -0.1), "argument --noise: -0.1 is not a finite number of at least 0"),
        (("--values", -3), "argument --values: -3 is not a finite number above 0"),
        (("--values", "inf"), "argument --values: inf is not a finite number above 0"),
        (("--sizes", 0), "argument --sizes: 0 is not a finite number above 0"),
        (("--unique", "many"), "argument --unique: invalid positive_number value: 'many'"),
        (("--seed", -1), "argument --seed: -1 is negative"),
        (("--json", "none/x.json"), "argument --json: none/x.json: there is no directory none"),
    ],
)
def test_refusals_of_a_simulation(tool, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, said, error = tool(*arguments, name="identifiability.py")
    assert (code, message in error, said) == (2, True, ""), error


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (("none.csv", "--bootstrap", 0), 2, "argument --bootstrap: 0 is not at least 1"),
        (("none.csv", "--hold-out", -1), 2, "argument --hold-out: -1 is negative"),
        (("none.csv", "--seed", -1), 2, "argument --seed: -1 is negative"),
        (("none.csv",), 4, "none.csv cannot be read: No such file or directory"),
        ((".",), 4, "tools/study.py table writes them"),
        (("empty.parquet",), 4, "empty.parquet cannot be read: "),
    ],
)
def test_refusals_of_a_report(tool, monkeypatch, tmp_path, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.parquet").touch()
    ended, _, error = tool(*arguments, name="repetition_report.py")
    assert (ended, message in error) == (code, True), error
    # Nothing is left behind.
    assert [path.name for path in tmp_path.iterdir()] == ["empty.parquet"]


def test_fitting_loads_nothing_that_trains_or_draws():
    code = (
        "import sys, card_scale.laws.fit_report, card_scale.laws.table, card_scale.laws.coverage;"
        "print(sorted({'torch', 'megatron', 'deepspeed', 'matplotlib', 'pyarrow'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout
    assert said.strip() == "[]"


def test_a_missing_table(tool, tmp_path):
    code, _, error = tool(tmp_path / "none.csv")
    assert code == 4
    assert "none.csv" in error


def test_identifiability(tool, tmp_path):
    out = tmp_path / "found.json"
    code, said, _ = tool("--values", 500, "--epochs", 4, "--repetitions", 5, "--json", out, name="identifiability.py")
    assert code == 0
    assert "lower bound only" in said
    assert json.loads(out.read_text(encoding="utf-8"))["results"][0]["most_epochs"] == 4
