"""tools/checkpoint.py on checkpoints made by hand: what is listed, verified, shown, compared and pruned."""

import shutil
from pathlib import Path

import pytest
import torch

from card_scale.checkpoint import directory as directories
from card_scale.checkpoint.format import StoredPiece
from card_scale.training.run_lock import RunLock
from tests.checkpoint.handmade import publish


def save(root: Path, step: int, value: float | None = None) -> Path:
    weight = torch.full((4, 2), float(step) if value is None else value)
    states = {"weight": {"w": weight}, "exp_avg": {"w": torch.full((4, 2), 0.5)}}
    return publish(root, step, states, {"w": (0, [StoredPiece("a", 0, 2), StoredPiece("b", 2, 4)])})


@pytest.fixture
def run_directory(tmp_path):
    """A run with checkpoints of steps 10 to 50, the one of step 30 damaged and that of 20 incomplete."""
    for step in range(10, 51, 10):
        save(tmp_path / "run/checkpoints", step)
    damaged = tmp_path / "run/checkpoints/iter_0000030/model/a.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    (tmp_path / "run/checkpoints/iter_0000020/model/b.safetensors").unlink()
    return tmp_path / "run"


def test_list(tool, run_directory):
    code, text, _ = tool("list", run_directory)
    lines = text.splitlines()
    assert code == 0
    assert [line.split()[0] for line in lines] == [f"iter_00000{step}" for step in range(10, 51, 10)]
    assert "file model/b.safetensors is missing" in lines[1]
    assert "MiB  by hand, none" in lines[0]
    assert [line.endswith("<- latest") for line in lines] == [False] * 4 + [True]
    assert tool("list", run_directory / "checkpoints")[1] == text


def test_verify(tool, run_directory):
    code, text, words = tool("verify", run_directory)
    assert code == 5
    assert "2 of 5 checkpoints are damaged" in words
    assert text.count("every file is what was written") == 3
    assert "iter_0000030: file model/a.safetensors is damaged" in text
    assert "iter_0000020: file model/b.safetensors is missing" in text
    assert tool("verify", run_directory / "checkpoints/iter_0000040")[0] == 0
    assert tool("verify", run_directory / "checkpoints/iter_0000030")[0] == 5
    (run_directory / "checkpoints/iter_0000040/manifest.json").unlink()
    code, text, _ = tool("verify", run_directory / "checkpoints/iter_0000040")
    assert code == 5
    assert "manifest.json is missing" in text


def test_verify_looks_at_what_a_resume_looks_at(tool, run_directory):
    root = run_directory / "checkpoints"
    for step in (20, 30):  # which are damaged
        shutil.rmtree(root / f"iter_00000{step}")
    assert tool("verify", run_directory)[0] == 0
    pointer = root / "latest_checkpointed_iteration.txt"
    for content, message in (("60", "names step 60, whose checkpoint is gone"), ("here", "names no step")):
        pointer.write_text(content)
        code, _, words = tool("verify", run_directory)
        assert (code, message in words) == (5, True)
    pointer.write_text("50")
    (root / "iter_0000010").rename(root / "iter_0000045")
    code, text, _ = tool("verify", run_directory)
    assert code == 5
    assert "iter_0000045: its manifest is of step 10" in text
    assert tool("verify", root / "iter_0000045")[0] == 5


def test_show(tool, run_directory):
    code, text, _ = tool("show", run_directory / "checkpoints/iter_0000040", "--tensors")
    assert code == 0
    for words in ("after 40 updates", "8 parameters; weight, exp_avg", "state: step 40", "w (4, 2), in 2 pieces"):
        assert words in text
    code, _, words = tool("show", run_directory)
    assert code == 5
    assert "give one of them" in words


def test_diff(tool, run_directory, tmp_path):
    one, other = (run_directory / f"checkpoints/iter_00000{step}" for step in (40, 50))
    code, text, _ = tool("diff", one, other, "--states")
    assert code == 0
    assert "w (weight) differs by 2.50e-01 of its norm, at most 1.00e+01 in an element" in text
    assert text.splitlines()[-1] == "1 differences"
    assert tool("diff", one, one, "--states")[1] == "no difference\n"
    nan = save(tmp_path / "nan", 40, float("nan"))
    assert "w (weight) differs by nan" in tool("diff", one, nan)[1]
    shape = publish(tmp_path / "shape", 1, {"weight": {"v": torch.zeros(3)}}, {"v": (0, [StoredPiece("a", 0, 3)])})
    text = tool("diff", one, shape)[1]
    assert f"v (weight) is not in {one}" in text
    assert f"w (weight) is not in {shape}" in text
    assert "exp_avg is held by one of them only" in tool("diff", one, shape, "--states")[1]


def test_prune(tool, run_directory):
    root = run_directory / "checkpoints"
    killed = root / directories.temporary_name(35)
    killed.mkdir()
    arguments = ("prune", run_directory, "--keep-last", 2, "--keep-every", 30)
    code, text, _ = tool(*arguments)
    assert code == 0
    going = [line.removeprefix("would delete: ") for line in text.splitlines()[:-1]]
    assert going == ["checkpoint of step 10", "checkpoint of step 20", killed.name]
    assert "3 of 5 checkpoints would be left; --yes deletes" in text
    assert directories.published_steps(root) == [50, 40, 30, 20, 10]
    with RunLock(run_directory):
        code, _, words = tool(*arguments, "--yes")
        assert code == 3
        assert "is in use by process" in words
    code, text, _ = tool(*arguments, "--yes")
    assert code == 0
    assert directories.published_steps(root) == [50, 40, 30]
    assert not killed.exists()
    assert "3 of 5 checkpoints are left" in text
    assert not (run_directory / "run.lock").exists()


def test_refusals(tool, run_directory, tmp_path):
    assert tool("prune", run_directory, "--keep-last", 1)[0] == 3
    for command in (["list"], ["verify"], ["prune", "--keep-last", "2"]):
        code, _, words = tool(command[0], tmp_path / "empty", *command[1:])
        assert code == 5
        assert "there are no checkpoints; give a run directory" in words
