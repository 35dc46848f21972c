"""The comparison of runs at equal tokens and equal FLOPs."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from card_scale.benchmark import comparison
from card_scale.benchmark.comparison import Curve, Point
from card_scale.errors import CommandLineError, ConfigurationError, ExitCode

ROOT = Path(__file__).resolve().parents[2]

CHEAP = Curve("ar", False, (Point(0, 0, 9.0, 0.0), Point(100, 1000, 5.0, 0.0), Point(200, 2000, 4.0, 0.0)))
DEAR = Curve("bd3lm", True, (Point(0, 0, 9.0, 0.1), Point(100, 1900, 6.0, 0.2), Point(200, 3800, 5.0, 0.3)))


def test_equal_tokens_and_equal_flops():
    equal = comparison.at_equal_cost([CHEAP, DEAR])
    assert equal["tokens"] == {"ar": [CHEAP.points[-1]], "bd3lm": [DEAR.points[-1]]}
    assert equal["flops"]["ar"] == [CHEAP.points[-1]]
    # 2000 FLOPs lie 100 / 1900 of the way from the second to the third evaluation.
    share = 100 / 1900
    expected = (100 + 100 * share, 2000, 6.0 - share, 0.2 + 0.1 * share)
    assert equal["flops"]["bd3lm"] == [pytest.approx(expected)]
    text = comparison.table([CHEAP, DEAR])
    assert "<= 5.000 +- 0.300" in text
    assert "4.000 (0.00 M)" in text


def test_seeds_are_averaged_and_other_likelihoods_stand_by_themselves():
    def of_seed(seed, nll):
        points = (Point(0, 0, 9.0, 0.0), Point(100, 1500, nll, 0.0))
        return Curve("armd", False, points, seed, {"armd/any_order_nll": (nll + 1, 0.01)})

    text = comparison.table([CHEAP, of_seed(1, 4.0), of_seed(2, 4.2)])
    rows = text.splitlines()
    assert rows[2].split()[:3] == ["armd", "4.100", "+-"]
    assert "4.100 +- 0.141" in rows[2]
    assert rows[3] == "armd/any_order_nll, at the end of each run, not to be compared with the above:"
    assert rows[4] == "armd  5.100 +- 0.141"
    assert "armd/any" not in comparison.table([CHEAP, DEAR])
    assert comparison.table([CHEAP, of_seed(1, 4.0)]).endswith("armd  5.000 +- 0.010")


def test_an_override_of_no_arm_is_refused(tmp_path):
    command = [sys.executable, str(ROOT / "tools/compare_objectives.py"), "x.yaml", "--arms", "ar", "--runs"]
    command += [str(tmp_path), "--output", str(tmp_path / "out"), "--of", "mdlm:run.seed=1"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == ExitCode.COMMAND_LINE
    assert "is not ARM:KEY=VALUE with an arm of ar" in refused.stderr


def test_bounds_stand_below_exact_losses_and_say_what_they_are():
    lines = comparison.table([DEAR, CHEAP]).splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["ar", "bd3lm"]
    assert lines[3].startswith(
        "<= is an upper bound: below an exact loss, by more than its error, it says that its model is better"
    )
    assert "upper bound" not in comparison.table([CHEAP])


def test_the_figure_has_few_ticks_names_its_lines_and_is_not_filled_by_an_error(tmp_path, monkeypatch):
    """The bound's error is far larger than the panel, which shows the lines."""
    drawn = []
    monkeypatch.setattr(comparison.charts, "save", lambda figure, path: drawn.append((figure, path)))
    wild = Curve("mdlm", True, tuple(point._replace(standard_error=50.0) for point in DEAR.points))
    comparison.plot([CHEAP, wild], "T", tmp_path / "c.png")
    ((figure, _),) = drawn
    for panel in figure.axes:
        low, high = panel.get_ylim()
        assert low > 3.5
        assert high < 6.5
        assert [text.get_text() for text in panel.texts] == ["ar", "mdlm (upper bound)"]
        assert len(panel.get_xticks()) <= 5
        assert not panel.collections  # no band over the lines
        assert {line.get_linestyle() for line in panel.lines if line.get_marker() != "None"} == {"-", "--"}


@pytest.mark.parametrize(
    "given, words",
    [(("--arms", "ar", "ar"), "--arms ar ar names one twice"), (("--seeds", "1", "1"), "--seeds 1 1 names one twice")],
)
def test_two_runs_in_one_directory_are_refused(monkeypatch, given, words):
    with pytest.raises(CommandLineError, match=words):
        runs_of(monkeypatch, *given)


def runs_of(monkeypatch, *given: str) -> dict[str, list[str]]:
    """Return the command of each arm, over the quickstart's configuration of 2 pipeline stages."""
    config = str(ROOT / "launchers/configs/quickstart.yaml")
    options = ["--runs", "runs", "--output", "out"]
    monkeypatch.setattr(sys, "argv", ["compare_objectives.py", config, *given, *options])
    tool = runpy.run_path(str(ROOT / "tools/compare_objectives.py"))
    return {one.arm: one.command for one in tool["runs_of"](tool["parse"]())}


def test_a_key_of_an_objective_that_the_file_does_not_name(monkeypatch):
    (command,) = runs_of(monkeypatch, "objective.block=8", "--arms", "a=bd3lm").values()
    assert command[-3:] == ["objective.name=bd3lm", "run.dir=runs/a", "objective.block=8"]
    with pytest.raises(ConfigurationError, match=r"objective\.block"):
        runs_of(monkeypatch, "objective.block=8", "--arms", "ar")


def test_each_arm_has_the_ranks_of_its_own_layout(monkeypatch):
    arms = ("--arms", "ar", "two=ar", "--of", "two:parallel.pipeline=1")
    commands = runs_of(monkeypatch, *arms)
    assert commands["ar"][:3] == ["launchers/torchrun_one_node.sh", "--nproc", "2"]
    assert commands["two"][:3] == [sys.executable, "-m", "card_scale.train"]
    assert {command[2] for command in runs_of(monkeypatch, *arms, "--ranks", "4").values()} == {"4"}
