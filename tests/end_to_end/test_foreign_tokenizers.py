"""From text to a trained model with tokenizers that were made elsewhere."""

import json

import pytest

from card_scale.corpus.build import BuildSettings, build_dataset
from card_scale.corpus.sources import InputSettings
from card_scale.corpus.verify import verify_dataset
from card_scale.data.manifest import Manifest
from card_scale.data.tokenizer import Tokenizer
from card_scale.generation import load
from card_scale.generation.perplexity import dataset_perplexity
from tests.corpora import make_texts
from tests.end_to_end.conftest import write_config
from tests.end_to_end.test_train import records, train
from tests.foreign_tokenizers import SHAPES
from tests.layouts.processes import run_ranks


@pytest.mark.parametrize("shape", ["GPT-2, json", "T5, sentencepiece"])
def test_a_foreign_tokenizer_from_text_to_a_model(tmp_path, shape):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, text in enumerate(make_texts(60, seed=9)):
        (corpus / f"{number:03d}.txt").write_text(text, encoding="utf-8")
    original = SHAPES[shape](tmp_path)
    data = tmp_path / "data"
    build = BuildSettings(InputSettings((str(corpus),)), validation_fraction=0.2, unit_bytes=20_000)
    build_dataset(build, original, data, workers=2)
    assert verify_dataset(data) == []
    manifest = Manifest.load(data)
    tokenizer = Tokenizer.load(data / manifest.tokenizer.name)
    assert manifest.tokenizer.name == tokenizer.file_name
    assert manifest.special_ids == tokenizer.special_ids
    assert manifest.tokenizer.sha256 == tokenizer.sha256 == Tokenizer.load(original).sha256
    assert manifest.rewrites == tokenizer.rewrites
    assert bool(manifest.rewrites) == ("sentencepiece" in shape)
    assert build_dataset(build, original, data, workers=1).built == 0

    path = write_config(tmp_path, data)
    options = [
        "train.steps=2",
        "train.eval_every=2",
        "train.save_every=2",
        "model.layers=2",
        "model.tie_embeddings=false",
    ]
    assert run_ranks(train, 1, [str(path), *options], deadline=90) == [0]
    training, evaluations = records(tmp_path / "run")
    assert [record["step"] for record in training] == [1, 2]
    checkpoint = tmp_path / "run/checkpoints/iter_0000002"
    assert (checkpoint / tokenizer.file_name).read_bytes() == tokenizer.content
    assert "mask_id" not in (checkpoint / "config.yaml").read_text()
    model = load(checkpoint)
    assert (model.shape.mask_id, model.shape.start_id) == (tokenizer.mask_id, tokenizer.eos_id)
    result = list(dataset_perplexity(model, data, "validation", samples=5, batch=5, draws=1))[-1]
    assert result.nats_per_token == pytest.approx(evaluations[-1]["validation_nll"], rel=1e-5)
    assert json.loads((checkpoint / "manifest.json").read_text())["tokenizer_sha256"] == tokenizer.sha256
