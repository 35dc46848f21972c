"""Loading: the logits of the model that is trained, whatever it was trained for; what is wrong is said in one line."""

import json
import re
import shutil

import pytest
import torch

from card_scale.errors import CheckpointError
from card_scale.generation import generate, load
from card_scale.model.vocabulary import Vocabulary
from card_scale.model.weights import logical_weights
from card_scale.objectives.attention import Bidirectional, Causal, StrictBlockCausal
from tests.generation.conftest import TINY, prompt, write_checkpoint
from tests.model.conftest import build, one_rank  # noqa: F401 - fixtures

MODELS = {
    "card": (Causal(), {}, []),
    "tied, grouped": (Causal(), {"tie_embeddings": True, "kv_heads": 1, "rotary_base": 50.0, "norm_epsilon": 0.01}, []),
    "mdlm": (Bidirectional(), {}, ["objective.name=mdlm"]),
    "armd": (StrictBlockCausal(), {}, ["objective.name=armd"]),
    "armd, grouped": (StrictBlockCausal(), {"kv_heads": 1, "rotary_base": 50.0}, ["objective.name=armd"]),
}


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_those_of_the_trained_model(build, tmp_path, tokenizer_path, name):  # noqa: F811
    attention, sizes, overrides = MODELS[name]
    sizes = {"tie_embeddings": False, **sizes}
    model = build(attention, Vocabulary(400, 4), length=48, **sizes)
    overrides = [*overrides, *(f"model.{key}={str(value).lower()}" for key, value in sizes.items())]
    weights = {where.name: parameter.detach() for parameter, where in logical_weights([model])}
    loaded = load(write_checkpoint(tmp_path / "iter_0000003", tokenizer_path, weights, *TINY, *overrides))
    tokens = torch.tensor([prompt(48, 1), prompt(48, 2)])
    with torch.no_grad():
        places = torch.arange(48)
        places = torch.cat((places + 1, places)) if attention.has_query_stream else places
        expected = model(tokens, places.expand(2, -1)).transpose(0, 1)[..., :400].clone()
    expected[..., 4] = -torch.inf
    torch.testing.assert_close(loaded.logits(tokens), expected, rtol=1e-5, atol=2e-5)


def test_what_belongs_to_the_model_comes_with_it(checkpoint):
    model = load(checkpoint, dtype=torch.bfloat16)
    assert model.embedding.weight.dtype == torch.bfloat16
    assert model.logits(torch.tensor([[5, 6]])).dtype == torch.float32
    assert model.tokenizer.decode(model.tokenizer.encode("def print")) == "def print"
    assert (model.objective, model.decoders) == ("card", ("ar", "self_verified", "card"))


def damaged(checkpoint, tmp_path, name, change):
    copy = tmp_path / "iter_0000000"
    shutil.copytree(checkpoint, copy)
    path, manifest = copy / name, copy / "manifest.json"
    # Whoever changes a manifest on purpose leaves out its own hash.
    content = json.loads(manifest.read_text())
    del content["sha256"]
    manifest.write_text(json.dumps(content, indent=1))
    path.write_text(change(path.read_text()))
    if name != "manifest.json":
        content["files"][name]["bytes"] = path.stat().st_size
        manifest.write_text(json.dumps(content))
    return copy


@pytest.mark.parametrize(
    "name, change, words",
    [
        ("config.yaml", lambda text: text.replace("ffn: 40", "ffn: 48"), "mlp.gate.weight has shape"),
        (
            "config.yaml",
            lambda text: text.replace("layers: 2", "layers: 1"),
            "which has no layers.1.attention.linear_proj.weight",
        ),
        ("config.yaml", lambda text: text.replace("layers: 2", "layers: 3"), "no parameter 'layers.2."),
        ("config.yaml", lambda text: text.replace("name: card", "name: bert"), "objective.name is 'bert'"),
        ("manifest.json", lambda text: re.sub('"tokenizer_sha256": "..', '"tokenizer_sha256": "zz', text), "tokenizer"),
        ("manifest.json", lambda text: text[:50], "manifest.json is damaged"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(checkpoint, tmp_path, name, change, words):
    with pytest.raises(CheckpointError, match=re.escape(words)):
        load(damaged(checkpoint, tmp_path, name, change))


def test_what_is_not_there_is_refused(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="there is no such directory"):
        load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="holds no ema"):
        load(checkpoint, ema=True)


def test_stop_strings_end_where_the_text_has_them(checkpoint):
    model = load(checkpoint)
    start = [model.tokenizer.encode("def")]
    (whole,) = generate(model, start, method="ar", new_tokens=30, temperature=1.5)
    text = model.tokenizer.decode(whole.tokens[:12])
    stop = text[-3:]
    for method in ("ar", "self_verified"):
        (one,) = generate(
            model, start, method=method, new_tokens=30, temperature=1.5, stop_strings=(stop, "not in it at all")
        )
        shortest = next(n for n in range(31) if stop in model.tokenizer.decode(whole.tokens[:n]))
        assert one.tokens == whole.tokens[:shortest]
        assert one.stopped == stop
        assert len(one.commit_passes) == shortest
