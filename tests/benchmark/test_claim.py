"""Operations of block diffusion over CARD's, against counts of every pair and every product."""

import subprocess
import sys
from pathlib import Path

import pytest

from card_scale.benchmark import claim
from card_scale.config import ModelConfig
from card_scale.objectives.block_diffusion import attention_mask

SIZES = ModelConfig(layers=3, hidden=8, heads=2, ffn=12, length=16)
VOCABULARY = 40
TOOL = Path(__file__).resolve().parents[2] / "tools/latency_claim.py"


def by_counting(length: int, block: int) -> tuple[float, float]:
    """(visible, whole): multiplications of a forward pass over one sample, counted by matrix and by pair."""
    attention, key_value, feed_forward = 4 * 8 * 8, 2 * 8 * 8, 3 * 8 * 12
    mask = attention_mask(length, block)
    head = length * 8 * VOCABULARY
    card = length * 3 * (attention + feed_forward) + 3 * 2 * 8 * length * length / 2 + head
    # In the last layer the clean half is keys and values, and only the noisy half asks.
    layers = 2 * 2 * length * (attention + feed_forward) + length * (attention + feed_forward) + length * key_value
    visible = 2 * int(mask.sum()) + int(mask[:length].sum())
    whole = 2 * (2 * length) ** 2 + length * 2 * length
    return tuple((layers + 2 * 8 * pairs + head) / card for pairs in (visible, whole))


@pytest.mark.parametrize("length, block", [(16, 4), (16, 16), (64, 1), (64, 8)])
def test_ratios(length, block):
    assert claim.counted(SIZES, length, block, VOCABULARY) == pytest.approx(by_counting(length, block), rel=1e-12)


def test_the_first_length_is_the_first():
    block = 4
    length = claim.first_length(SIZES, 3.0, block, VOCABULARY)
    assert length % block == 0
    assert by_counting(length, block)[1] >= 3.0 > by_counting(length - block, block)[1]
    assert claim.first_length(SIZES, 1.0, block, VOCABULARY) == block
    assert claim.first_length(SIZES, 9.0, block, VOCABULARY) is None  # eight is the limit


def test_the_page_says_what_the_tool_counts():
    configs = [f"launchers/configs/card-{size}.yaml" for size in ("124m", "1b", "3b")]
    command = [sys.executable, TOOL, *configs]
    done = subprocess.run(command, cwd=TOOL.parents[1], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout in (TOOL.parents[1] / "docs/latency.md").read_text(encoding="utf-8")


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, TOOL, "launchers/configs/card-124m.yaml", *map(str, arguments)]
    return subprocess.run(command, cwd=TOOL.parents[1], capture_output=True, text=True, check=False, timeout=120)


def test_what_cannot_end_well_is_refused_in_a_line(tmp_path):
    other = tmp_path / "other.json"
    other.write_text('{"results": [{"model": "a"}]}')
    figure = tmp_path / "figure.svg"
    refused = {
        ("--lengths", 100): (2, "--lengths 100 is not a multiple of --block 16"),
        ("launchers/configs/card-124m.yaml",): (2, "two configurations have one name"),
        ("--results", other): (2, "give --plot too"),
        ("--results", other, "--plot", figure): (4, f"{other}: no results of tools/bench_step_latency.py"),
        ("--results", "benchmarks/step_latency_cpu.json", "--plot", figure): (
            4,
            "there are: quickstart with block 128",
        ),
    }
    for arguments, (code, words) in refused.items():
        done = run(*arguments)
        assert (done.returncode, words in done.stderr) == (code, True), done.stderr
        assert "Traceback" not in done.stderr
    assert not figure.exists()


def test_measurements_stand_beside_their_model(tmp_path, monkeypatch):
    def result(length: int, engine: str, ratio: float) -> dict:
        arms = {"bd3lm-flex-b4": {"objective": "bd3lm", "block": 4, "attention_backend": "flex"}}
        arms["bd3lm-flex-b8"] = arms["bd3lm-flex-b4"] | {"block": 8}
        pairs = [
            {"arm": arm, "base": "card", "flops_ratio": 1.9, "paired_ratio": {"median": ratio, "low": 1.0, "high": 3.0}}
            for arm in arms
        ]
        return {"length": length, "model": "small", "engine": engine, "arms": arms, "comparisons": pairs}

    results = [result(32, "fsdp2", 1.7), result(16, "fsdp2", 1.6), result(16, "deepspeed", 1.5)]
    found = claim.by_model(results, 4, ["small"])
    assert {label: [(p.length, p.median) for p in points] for label, points in found["small"].items()} == {
        "flex, fsdp2": [(16, 1.6), (32, 1.7)],
        "flex, deepspeed": [(16, 1.5)],
    }
    drawn = []
    monkeypatch.setattr(claim.charts, "save", lambda figure, _path: drawn.append(figure))
    models = {"small": SIZES, "other": SIZES}
    claim.draw(models, [16, 64], results, tmp_path / "x", ratio=3.0, block=4, vocabulary_rows=VOCABULARY)
    small, other = drawn[0].axes[:2]
    counts = [len(axis.get_legend().get_texts()) for axis in (small, other)]
    assert counts == [4, 2]
    assert small.get_ylim() == other.get_ylim()
