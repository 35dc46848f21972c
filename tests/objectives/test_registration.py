"""An objective from outside the package, by one class and one entry point: trained, evaluated, resumed, counted,
planned and timed by the tools as they are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from card_scale import config as configs
from card_scale.checkpoint.reader import CheckpointReader
from card_scale.errors import ConfigurationError
from card_scale.objectives import registry
from card_scale.training.records import evaluations_of, read_metrics
from tests.end_to_end.conftest import make_dataset, write_config
from tests.layouts.processes import run_ranks

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(__file__).parent / "toy_package"
TOY = ["objective.name=toy", "objective.width=5", "optimizer.schedule=constant", "train.eval_every=2"]


@pytest.fixture(scope="module")
def config_file(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("toy")
    return write_config(root, make_dataset(root / "data", seed=7))


def tool(*arguments: object, code: int = 0, installed: bool = True) -> str:
    """Run a Python program of the repository, with the toy package installed; return what it printed."""
    path = [str(ROOT), *([str(PACKAGE)] if installed else [])]
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def train_installed(arguments: list[str]) -> int:
    """Run the main job in a process that has the toy package installed."""
    from card_scale.train import main

    sys.path.insert(0, str(PACKAGE))
    return main(arguments)


def test_it_trains_evaluates_and_resumes_on_another_layout(config_file, tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    train = [str(config_file), *TOY]
    other_layout = ["parallel.pipeline=2", "parallel.zero=1"]
    assert run_ranks(train_installed, 1, [*train, f"run.dir={whole}", "train.steps=4"]) == [0]
    assert run_ranks(train_installed, 1, [*train, f"run.dir={halves}", "train.steps=2"]) == [0]
    assert run_ranks(train_installed, 2, [*train, f"run.dir={halves}", "train.steps=4", *other_layout]) == [0, 0]

    records = read_metrics(whole / "metrics.jsonl")
    evaluations = evaluations_of(records)
    assert [record["step"] for record in evaluations] == [0, 2, 4]
    rates = [record["toy/rate"] for record in evaluations]
    assert len(set(rates)) == 3
    assert all(record["bound"] and record["toy/validation_nll_last"] > 0 for record in evaluations)
    training = [record for record in records if "loss" in record]
    assert all(record["toy/loss_masked"] > 0 and 0 < record["toy/mask_ratio"] < 1 for record in training)
    for run in (whole, halves):
        with CheckpointReader(run / "checkpoints/iter_0000004") as reader:
            assert reader.state["toy/rate"] == pytest.approx(rates[-1], rel=1e-5)
    for one, other in zip(records, read_metrics(halves / "metrics.jsonl"), strict=True):
        one.pop("stragglers/batch_ms", None)  # of several ranks alone
        other.pop("stragglers/batch_ms", None)
        assert one.keys() == other.keys()
        for key in one.keys() - {"step_seconds", "tokens_per_second", "data/wait_ms", "world_size"}:
            assert one[key] == pytest.approx(other[key], rel=1e-4), (one["step"], key)


def test_it_is_checked_and_counted(config_file):
    shown = tool("-m", "card_scale.train", config_file, *TOY, "--dry-run")
    # By hand: 2 layers, hidden 32, ffn 48, 448 rows; a window of 5 in 24 positions leaves 110 pairs; 6 steps of 8.
    matrices = 2 * (4 * 32**2 + 3 * 32 * 48)
    per_token = 6 * (matrices + 448 * 32) + 12 * 32 * 2 * 110 / 24
    assert f"{per_token * 6 * 8 * 24:.3g} model FLOPs" in shown
    assert "rate: 0.25" in tool("-m", "card_scale.train", config_file, *TOY, "--print-config")
    assert "width 50 is above model.length 24" in tool(
        "-m", "card_scale.train", config_file, *TOY, "objective.width=50", "--dry-run", code=3
    )
    assert "objective.rate is 0.95" in tool("-m", "card_scale.train", config_file, *TOY, "objective.rate=0.95", code=3)
    assert "valid are card, ar, mdlm, bd3lm, armd, toy" in tool(
        "-m", "card_scale.train", config_file, "objective.name=x", code=3
    )
    assert "'toy'; valid are card, ar, mdlm, bd3lm" in tool(
        "-m", "card_scale.train", config_file, *TOY, code=3, installed=False
    )


def test_a_study_plans_it(config_file, tmp_path):
    grid = {
        "config": str(config_file),
        "overrides": {"objective.name": "toy"},
        "arms": {"narrow": {"objective.width": 2}, "wide": {"objective.width": 8}},
        "sizes": {"s": {}},
        "unique_tokens": [961],
        "epochs": [2],
        "schedule": "constant",
        "hardware": {"flops_per_second": 1e9},
    }
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    tool("tools/study.py", "plan", tmp_path / "grid.yaml", "--directory", tmp_path / "study")
    narrow, wide = json.loads((tmp_path / "study/plan.json").read_text())["tasks"]
    pairs = [sum(min(position + 1, width) for position in range(24)) for width in (2, 8)]
    tokens = narrow["tokens"]
    assert wide["flops"] - narrow["flops"] == pytest.approx(12 * 32 * 2 * tokens * (pairs[1] - pairs[0]) / 24)


def test_it_is_timed_beside_card(config_file, tmp_path):
    sizes = ["--vocabulary", 250, "--steps", 2, "--warm-up", 2, "--tolerance", "inf"]
    result = tmp_path / "out.json"
    tool("tools/bench_step_latency.py", config_file, "--arms", "card", "toy", *sizes, "--json", result)
    measured = json.loads(result.read_text())["results"][0]
    assert [(pair["arm"], pair["base"]) for pair in measured["comparisons"]] == [("toy", "card")]
    assert measured["arms"]["toy"]["attention_backend"] == "dense"
    assert measured["arms"]["toy"]["flops"]["attention"] < measured["arms"]["card"]["flops"]["attention"]


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that installs a package with one entry point, beside the toy's module."""

    def add(name: str, target: str) -> None:
        package = tmp_path / "added-1.0.dist-info"
        package.mkdir()
        (package / "METADATA").write_text("Metadata-Version: 2.1\nName: added\nVersion: 1.0\n")
        (package / "entry_points.txt").write_text(f"[card_scale.objectives]\n{name} = {target}\n")
        monkeypatch.syspath_prepend(str(PACKAGE))
        monkeypatch.syspath_prepend(str(tmp_path))

    return add


BROKEN = ["nowhere_to_be_found:Toy", "toy_objective:Missing"]


@pytest.mark.parametrize("target", BROKEN)
def test_a_broken_entry_point_is_named(config_file, install, target):
    install("broken", target)
    with pytest.raises(ConfigurationError, match=rf"objective\.name broken: {target} cannot be loaded"):
        configs.load(config_file, ["objective.name=broken"])


RAISES = "raises_at_import:Toy"


@pytest.mark.parametrize("target", [*BROKEN, RAISES, "toy_objective:ToyObjective"])
def test_a_broken_package_leaves_other_objectives_alone(config_file, install, tmp_path, target):
    (tmp_path / "raises_at_import.py").write_text("raise ValueError('not today')")
    install("broken", target)
    assert configs.load(config_file, ["objective.name=ar", "objective.decay=0.5"]).objective.name == "ar"
    with pytest.raises(ConfigurationError, match=r"objective\.decay is 0\.6, but it is a key of card and"):
        configs.load(config_file, ["objective.name=ar", "objective.decay=0.6"])
    with pytest.raises(ConfigurationError, match=r"unknown key objective\.decy; did you mean decay"):
        configs.load(config_file, ["objective.name=ar", "objective.decy=0.5"])


def test_a_name_that_is_taken_is_refused_by_whoever_asks_for_it(config_file, install):
    install("mdlm", "toy_objective:ToyObjective")
    for ask in (
        lambda: configs.load(config_file, ["objective.name=mdlm"]),
        registry.names,
    ):
        with pytest.raises(ConfigurationError) as caught:
            ask()
        for words in ("toy_objective:ToyObjective", "card_scale.objectives.mdlm:MdlmObjective"):
            assert words in str(caught.value)
    assert configs.load(config_file, ["objective.name=ar", "objective.resample=true"]).objective.name == "ar"
