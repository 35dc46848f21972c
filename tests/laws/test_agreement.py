"""One interval in text, profile, figure and JSON; a study's directory, bounds and columns on the command line."""

import csv
import json
import re

import pytest

from card_scale.laws import fit_figures
from card_scale.laws.analysis import Settings, analyse
from card_scale.laws.forms import FORMS
from tests.laws import datablations

FLAGS = ("--form", "chinchilla", "--starts", "4", "--bootstrap", "0")


def test_text_profile_and_figure_state_one_interval(tool, tmp_path):
    """The profile rejects R_N below 0.24; ladders drawn anew reach 0: the interval given is the wider one."""
    code, said, _ = tool(
        datablations.PATH, "--where", "in_published_182_fit=1", "--constants", "muennighoff-c4", "--bootstrap", "40",
        "--profile", "--json", tmp_path / "fit.json",
    )  # fmt: skip
    assert code == 0
    found = json.loads((tmp_path / "fit.json").read_text())["constants"]["R_N"]
    assert found["low"] == 0.0 < found["own_interval"][0]
    assert re.search(r"^R_N +\(0, [\d.]+\] +\[0\.2\d+, ", said, re.MULTILINE)
    assert re.search(r"R_N: no value below [\d.]+ is rejected by both profile and bootstrap, 0 included", said)
    listed = said[said.index("profile of R_N") :].splitlines()
    assert re.match(
        r"it rejects what lies outside \[0\.2\d+, .*; the interval given is the bootstrap's too, \(0, ", listed[1]
    )
    for line in (line for line in listed[2:] if line[0].isdigit()):
        value, height, *beside = line.split(maxsplit=2)
        if float(height) > 1.0 and float(value) <= found["high"]:
            assert beside == ["in the interval by the bootstrap"]


def test_the_figure_shades_the_interval_that_is_given():
    runs = datablations.published_182()
    fixed = datablations.BASE
    analysis = analyse(FORMS["data-constrained"], runs, fixed, Settings(starts=16, bootstrap=40))
    drawn = fit_figures.figure(analysis)
    for axis, judged, profile in zip(drawn.axes, analysis.judgements, analysis.profiles, strict=False):
        (shade,) = axis.patches
        low, high = shade.get_extents().transformed(axis.transData.inverted()).intervalx
        shown = profile.values[(profile.objectives - profile.lowest) / profile.rise <= fit_figures.HIGHEST]
        assert low == pytest.approx(max(judged.low, shown.min()))
        assert high == pytest.approx(min(judged.high, shown.max()))
        labels = [text.get_text() for text in axis.get_xticklabels(which="both")]
        assert len(labels) <= 5


def write(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def rows(**cells):
    return [
        {"params_N": size, "tokens_D": tokens, "val_loss": 1.7 + 400 / size**0.34 + 400 / tokens**0.28, **cells}
        for size in (1e7, 1e8, 1e9)
        for tokens in (1e8, 1e9, 1e10)
    ]


def test_a_study_s_directory_and_chinchilla_without_unique_tokens(tool, tmp_path):
    write(tmp_path / "results.csv", rows())
    code, said, _ = tool(tmp_path, *FLAGS)
    assert code == 0
    assert "chinchilla on 9 runs" in said
    code, _, error = tool(tmp_path, "--starts", "4")
    assert code == 4
    assert "no column unique_tokens_U" in error


def test_a_name_cannot_have_two_columns_but_a_column_two_names(tool, tmp_path):
    table = write(tmp_path / "t.csv", [{("tokens" if k == "tokens_D" else k): v for k, v in r.items()} for r in rows()])
    both = ("--column", "tokens_D=tokens", "--column", "unique_tokens_U=tokens")
    assert tool(table, *FLAGS, *both)[0] == 0
    code, _, error = tool(table, *FLAGS, *both, "--column", "tokens_D=params_N")
    assert code == 3
    assert "--column takes tokens_D from tokens and from params_N; choose one" in error


def test_the_law_of_a_bound_is_called_so(tool, tmp_path):
    code, said, _ = tool(write(tmp_path / "t.csv", rows(objective="mdlm", bound="true")), *FLAGS)
    assert code == 0
    assert "the losses of mdlm are upper bounds: what is fitted is the law of its bound" in said


def test_what_takes_long_says_what_it_does(monkeypatch, capsys):
    from card_scale import waiting

    clock = iter([0.0, 1.0, 2.5, 3.0, 5.0])
    monkeypatch.setattr(waiting.time, "monotonic", lambda: next(clock))
    say = waiting.every_two_seconds()
    for number in range(4):
        say(f"stage {number}")
    assert capsys.readouterr().err.splitlines() == ["2 s: stage 1", "5 s: stage 3"]
