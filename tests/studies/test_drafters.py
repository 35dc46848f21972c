"""Runs as drafters: what is read from a run, and loss over AR within the same size, data, seed and tokens."""

import json
import math
import shutil

import pytest

from card_scale.config import Config
from card_scale.errors import CheckpointError
from card_scale.generation import generate, load
from card_scale.objectives import registry
from card_scale.studies.drafters import (
    Drafter,
    draw,
    label,
    measure,
    over_autoregressive,
    table,
    tokens_per_pass_on,
)
from tests.generation.conftest import checkpoint, make_model, prompt  # noqa: F401 - a fixture


@pytest.fixture
def run(tmp_path, checkpoint):  # noqa: F811
    directory = tmp_path / "spans-s1"
    shutil.copytree(checkpoint, directory / "checkpoints/iter_0000000")
    masked = {f"card/validation_nll_masked_{number}": float(number) for number in (1, 2, 10)}
    records = [
        {"step": 0, "validation_nll": 6.0},
        {"step": 5, "validation_nll": 3.5, **masked},
        {"step": 6, "loss": 1.0},
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return directory


def test_a_run_is_measured_by_its_last_checkpoint_and_evaluation(run):
    texts = [prompt(26, seed) for seed in range(3)]
    prompts = [text[:6] for text in texts]
    found = measure(run, texts, prompt_tokens=6, drafts=3, candidates=1)
    assert (found.run, found.label, found.clean_nll, found.masked_nll) == ("spans-s1", "card", 3.5, [1.0, 2.0, 10.0])
    assert found.trained_tokens == 5 * 32 * 48
    options = {
        "method": "self_verified",
        "drafts": 3,
        "copies": 0,
        "input_cost": 0.0,
        "candidates": 1,
        "new_tokens": 20,
    }
    whole = generate(load(run / "checkpoints/iter_0000000"), prompts, **options)
    assert found.greedy == 60 / sum(one.passes for one in whole)
    assert 1.0 <= found.sampled <= 4.0
    assert 1.0 <= found.on_text <= 4.0


@pytest.mark.parametrize("candidates", [1, 3])
def test_on_its_own_greedy_text_a_drafter_is_as_good_as_in_decoding(candidates):
    model, prompts = make_model(2.0), [prompt(6, seed) for seed in range(3)]
    options = {"drafts": 3, "candidates": candidates, "copies": 0, "input_cost": 0.0, "new_tokens": 30}
    written = generate(model, prompts, method="self_verified", **options)
    texts = [start + one.tokens for start, one in zip(prompts, written, strict=True)]
    found = tokens_per_pass_on(texts, model, 6, 3, candidates)
    assert found == 90 / sum(one.passes for one in written) > 1.0
    assert tokens_per_pass_on([start + prompt(30, 9) for start in prompts], model, 6, 3, candidates) < found


def test_a_run_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        measure(tmp_path, [[1]], 1, 1, 1)


def test_a_label_has_the_keys_that_differ():
    assert label(Config()) == "card"
    spans = registry.create("card", masking="spans", span_rate=0.08, reweight=False)
    assert label(Config(objective=spans)) == "card reweight=False masking=spans span_rate=0.08"
    assert label(Config(objective=registry.create("ar"))) == "ar"


def test_loss_over_ar_is_taken_within_the_same_size_seed_and_tokens(tmp_path):
    def drafter(name, nll, seed=1, size="a", tokens=9):
        return Drafter(name, name, size, seed, tokens, nll, [], 2.0, 1.5, 1.2)

    runs = [drafter("ar", 3.0), drafter("card", 3.2), drafter("ar", 4.0, seed=2), drafter("card", 4.5, seed=2)]
    runs += [drafter("card", 3.0, size="b"), drafter("card", 3.0, tokens=8)]
    excess = over_autoregressive(runs)
    assert excess[:4] == pytest.approx([0.0, 0.2, 0.0, 0.5])
    assert excess[4:] == [None, None]
    assert [record["over_ar"] for record in table(runs)] == excess
    draw(runs, tmp_path / "front.svg")
    assert "<svg" in (tmp_path / "front.svg").read_text()
    assert not math.isnan(runs[0].greedy)
