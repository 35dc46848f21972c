"""Faults on purpose: what the variable may say, and that every name in the code is one of the list."""

import ast
import errno
import re
from pathlib import Path

import pytest
import torch

from card_scale import faults
from card_scale.errors import ConfigurationError
from card_scale.faults import ACTIONS, POINTS, VALUES, VARIABLE, Fault, parse, reach, spoil

ROOT = Path(__file__).resolve().parents[1]


def test_entries():
    assert parse("") == []
    text = "rank=1,at=checkpoint.written,action=kill,step=4; rank=all,at=step.begin,action=sleep,step=2-5,seconds=0.5"
    assert parse(text) == [
        Fault(1, "checkpoint.written", "kill", range(4, 5), 1.0),
        Fault(None, "step.begin", "sleep", range(2, 6), 0.5),
    ]
    assert parse("rank=0,at=loss,action=nan") == [Fault(0, "loss", "nan", None, 1.0)]


@pytest.mark.parametrize(
    "text, words",
    [
        ("rank=0,at=nowhere,action=kill", "at=nowhere in .*; valid are start, data.batch"),
        ("rank=0,at=loss,action=kill", "action=kill at loss; valid are nan, infinity, spike"),
        ("rank=0,at=start,action=nan", "action=nan at start; valid are kill"),
        ("at=start,action=kill", "is no such entry; valid is rank=NUMBER or all"),
        ("rank=x,at=start,action=kill", "is no such entry"),
        ("rank=0,at=start,action=kill,step=x", "is no such entry"),
        ("rank=0,at=start,action=sleep,seconds=x", "is no such entry"),
        ("rank=0,at=start,action=kill,when=now", "when in .*; valid is rank"),
        ("kill", "kill in 'kill'"),
    ],
)
def test_what_is_no_entry_is_refused_by_name(text, words, monkeypatch):
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(ConfigurationError, match=f"CARD_FAULT: .*{words}"):
        faults.check()


def test_rank_place_and_step_must_all_be_met(monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, "rank=1,at=step.begin,action=exception,step=3-4")
    monkeypatch.setenv("RANK", "0")
    reach("step.begin", 3)
    monkeypatch.setenv("RANK", "1")
    for place, step in (("step.end", 3), ("step.begin", 2), ("step.begin", 5), ("step.begin", None)):
        reach(place, step)
    assert capsys.readouterr().err == ""
    with pytest.raises(RuntimeError, match=r"fault on purpose at step\.begin"):
        reach("step.begin", 4)
    assert capsys.readouterr().err == "fault on purpose (CARD_FAULT) at step.begin: exception\n"


@pytest.mark.parametrize("action, number", [("enospc", errno.ENOSPC), ("eio", errno.EIO)])
def test_errors_of_the_system(action, number, monkeypatch):
    monkeypatch.setenv(VARIABLE, f"rank=all,at=metrics,action={action}")
    with pytest.raises(OSError) as caught:
        reach("metrics", 1)
    assert caught.value.errno == number


def test_a_spoilt_loss_spoils_its_gradient_and_a_spoilt_gradient_nothing_else(monkeypatch):
    weight = torch.tensor(2.0, requires_grad=True)
    monkeypatch.setenv(VARIABLE, "rank=0,at=loss,action=nan")
    assert spoil("gradient", weight * 3, 1).item() == 6.0
    loss = spoil("loss", weight * 3, 1)
    loss.backward()
    assert loss.isnan()
    assert weight.grad.isnan()
    weight.grad = None
    monkeypatch.setenv(VARIABLE, "rank=0,at=gradient,action=spike")
    output = spoil("gradient", weight * 3, 1)
    output.backward()
    assert (output.item(), weight.grad.item()) == (6.0, 3000.0)


def test_every_name_in_the_code_is_listed_and_every_listed_one_is_in_the_code():
    found = set()
    for path in (ROOT / "card_scale").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("faults.reach", "faults.spoil"):
                found.add(ast.literal_eval(node.args[0]))
    assert found == POINTS.keys() | VALUES.keys()
    assert len(set(ACTIONS)) == len(ACTIONS)


def test_the_page_names_places_actions_and_tests_that_there_are():
    page = (ROOT / "docs/faults.md").read_text(encoding="utf-8")
    for name in (*POINTS, *VALUES, *ACTIONS, *faults.SPOILT):
        assert f"`{name}`" in page, name
    sources = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    everything = "\n".join(sources.values())
    for file, test in re.findall(r"`(?:[\w/]*/)?(test_\w+\.py)(?:::(\w+))?", page):
        assert file in sources
        assert not test or f"def {test}" in sources[file], (file, test)
    for test in re.findall(r", `(test_\w+?)_?…?`", page):
        assert f"def {test}" in everything, test
