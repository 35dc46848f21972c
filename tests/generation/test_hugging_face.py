"""Export and import, with transformers as the oracle."""

import ast
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from card_scale.corpus.tokenizer_training import train_tokenizer
from card_scale.data.tokenizer import CONTROL_IDS, MASK_ID, Tokenizer
from card_scale.errors import CheckpointError, DataError
from card_scale.generation import generate, load
from card_scale.generation.hugging_face import export as exporting
from card_scale.generation.hugging_face.export import export
from card_scale.generation.hugging_face.importing import import_folder
from card_scale.generation.hugging_face.reference_speed import describe, time_over_transformers
from card_scale.generation.hugging_face.tokenizer import write_tokenizer
from tests.corpora import ADVERSARIAL, make_texts
from tests.generation.conftest import TINY, make_model, prompt, whole_model_weights, write_checkpoint

NOT_MASK = [token for token in range(400) if token != MASK_ID]


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "folder"
    export(checkpoint, path)
    return path


def random_checkpoint(directory, tokenizer_path, *overrides, **sizes):
    model = make_model(3.0, dtype=torch.float32, rows=448, vocabulary=400, rotary_base=1e4, **sizes)
    weights = {name: weight.float() for name, weight in whole_model_weights(model).items()}
    return write_checkpoint(directory, tokenizer_path, weights, *TINY, *overrides)


@pytest.mark.parametrize("shard_bytes", [10**9, 30_000])
def test_transformers_computes_the_same_logits(tmp_path, tokenizer_path, monkeypatch, shard_bytes):
    monkeypatch.setattr(exporting, "SHARD_BYTES", shard_bytes)
    source = random_checkpoint(
        tmp_path / "iter_0000000", tokenizer_path, "model.tie_embeddings=false", "model.kv_heads=1", kv_heads=1
    )
    files = export(source, tmp_path / "folder")
    assert ("model.safetensors" in files) == (shard_bytes == 10**9)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    assert type(theirs) is LlamaForCausalLM
    tokens = torch.tensor([prompt(48, 1), prompt(48, 2)])
    with torch.no_grad():
        logits = theirs(tokens).logits
    assert logits.shape == (2, 48, 400)
    torch.testing.assert_close(load(source).logits(tokens)[..., NOT_MASK], logits[..., NOT_MASK], rtol=1e-5, atol=1e-5)


def test_transformers_generates_the_same_and_never_a_mask(checkpoint, folder):
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    start = prompt(6, 4)
    (ours,) = generate(load(checkpoint), [start], method="ar", new_tokens=30)
    out = theirs.generate(torch.tensor([start]), max_new_tokens=30, do_sample=False, eos_token_id=None)
    assert out[0, 6:].tolist() == ours.tokens
    assert GenerationConfig.from_pretrained(folder).suppress_tokens == [MASK_ID]


def test_the_bundled_class_decodes_in_parallel(folder):
    theirs = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert isinstance(theirs, LlamaForCausalLM)
    assert "card_scale" not in type(theirs).__module__
    starts = [prompt(6, 4), prompt(2, 5)]
    parallel = theirs.generate_parallel(starts, new_tokens=30)
    plain = theirs.generate_parallel(starts, new_tokens=30, method="ar")
    assert [one.tokens for one in parallel] == [one.tokens for one in plain]
    for one, start in zip(plain, starts, strict=True):
        out = theirs.generate(torch.tensor([start]), max_new_tokens=30, do_sample=False, eos_token_id=None)
        assert out[0, len(start) :].tolist() == one.tokens
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.decode(tokenizer.encode("a", add_special_tokens=False) + plain[0].tokens)[1:]
    stop = text[len(text) // 2 :][:3]
    with pytest.raises(Exception, match="stop_strings need a model with a tokenizer"):
        theirs.generate_parallel(starts, new_tokens=30, stop_strings=(stop,))
    stopped = theirs.generate_parallel(starts[:1], new_tokens=30, stop_strings=(stop,), tokenizer=tokenizer)[0]
    assert stopped.stopped == stop
    assert stopped.tokens == plain[0].tokens[: len(stopped.tokens)]
    with torch.no_grad():
        theirs.model.norm.weight.mul_(-1.0)
    assert [one.tokens for one in theirs.generate_parallel(starts, new_tokens=30)] != [one.tokens for one in plain]
    with pytest.raises(Exception, match=r"method bd3lm does not decode a model"):
        theirs.generate_parallel(starts, new_tokens=3, method="bd3lm")
    assert imported_in(folder) <= {"torch", "transformers", "typing_extensions"} | sys.stdlib_module_names
    (noise,) = (module for name, module in sys.modules.items() if name.endswith(".card_noise"))
    assert importlib.util.find_spec(noise._KERNELS) is None  # they stay behind
    assert not noise.has_triton()


def imported_in(folder: Path) -> set[str]:
    """Return the packages that a folder's modules import, wherever in them.

    transformers refuses a folder that imports what is not installed, and whoever loads it has torch and transformers.
    """
    found = set[str]()
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(node.module.split(".")[0])
    return found


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizers(request, tmp_path_factory):
    """Our tokenizer and what transformers makes of the exported one."""
    path = tmp_path_factory.mktemp("tokenizer")
    signs = ["x = a[1] / b < c > d  # M A S K B C D E F pad unk 0 1 2 3 4 5 6 7 8 9\n" * 30]
    (path / "tokenizer.model").write_bytes(train_tokenizer(make_texts(60, seed=3) + signs, 320, request.param))
    write_tokenizer(path / "tokenizer.model", path, 48)
    return Tokenizer.load(path / "tokenizer.model"), AutoTokenizer.from_pretrained(path)


TEXT = st.lists(
    st.one_of(
        st.sampled_from(["def", "return", " ", "  ", "\n", "\t", "\r\n", "12", "7", "\u0301", "\ufb01", "漢", "🧿"]),
        st.sampled_from(ADVERSARIAL.split()),
        st.text(max_size=5).filter(lambda text: "\u2581" not in text),
    ),
    max_size=20,
).map("".join)


@given(text=TEXT)
@settings(max_examples=300)
def test_the_exported_tokenizer_encodes_and_decodes_identically(tokenizers, text):
    ours, theirs = tokenizers
    ids = ours.encode(text)
    assert theirs.encode(text) == ids
    assert theirs.decode(ids) == ours.decode(ids) == text


def test_a_unigram_model_that_cannot_spell_its_control_symbols_is_refused(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(train_tokenizer(make_texts(60, seed=3), 320, "unigram"))
    with pytest.raises(DataError, match="without a piece for / "):
        write_tokenizer(tmp_path / "tokenizer.model", tmp_path, 48)


def test_special_tokens_are_known_by_name(tokenizers):
    _, theirs = tokenizers
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id, theirs.mask_token_id) == (0, 3, 3, MASK_ID)
    assert theirs.decode([5, *CONTROL_IDS, 6], skip_special_tokens=True) == theirs.decode([5, 6])


@pytest.mark.parametrize("name", ["mdlm", "bd3lm", "bd3lm objective.block=1"])
def test_what_is_no_causal_decoder_is_not_exported(tmp_path, tokenizer_path, name):
    source = random_checkpoint(tmp_path / "c", tokenizer_path, *f"objective.name={name}".split(), tied=True)
    with pytest.raises(CheckpointError, match="is no causal decoder"):
        export(source, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_nothing_is_written_over(checkpoint, folder, tmp_path):
    with pytest.raises(CheckpointError, match="exists; choose another folder"):
        export(checkpoint, folder)
    with pytest.raises(CheckpointError, match="exists; choose another name"):
        import_folder(folder, checkpoint)
    (tmp_path / "x.part").mkdir()
    (tmp_path / "x.part/precious").touch()
    for wrong, words in ((tmp_path / "nothing", "no such directory"), (folder, "import it first")):
        with pytest.raises(CheckpointError, match=words):
            export(wrong, tmp_path / "x")
    export(checkpoint, tmp_path / "x")
    assert (tmp_path / "x.part/precious").exists()


def test_nothing_is_left_of_an_export_that_fails(checkpoint, tmp_path, monkeypatch):
    def refuse(*_):
        raise DataError("this tokenizer cannot be translated")

    monkeypatch.setattr(exporting, "write_tokenizer", refuse)
    with pytest.raises(DataError, match="cannot be translated"):
        export(checkpoint, tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


def test_an_exported_folder_comes_back_unchanged(checkpoint, folder, tmp_path):
    import_folder(folder, tmp_path / "iter_0000000")
    back, before = load(tmp_path / "iter_0000000"), load(checkpoint)
    for (name, one), other in zip(back.named_parameters(), before.parameters(), strict=True):
        rows = 400 if name == "embedding.weight" else None
        assert torch.equal(one[:rows], other[:rows]), name
    assert back.tokenizer.sha256 == before.tokenizer.sha256


def foreign_tokenizer(path):
    """A tokenizer of the Llama 2 kind: <unk>, <s>, </s> first, a space before text, no pad and no mask."""
    model = sentencepiece_model_pb2.ModelProto.FromString(train_tokenizer(make_texts(60, seed=3), 330))
    by_id = list(model.pieces)
    kept = [by_id[1], by_id[2], by_id[3], *by_id[5:]]
    copies = [type(piece).FromString(piece.SerializeToString()) for piece in kept]
    del model.pieces[:]
    model.pieces.extend(copies)
    spec = model.trainer_spec
    spec.unk_id, spec.bos_id, spec.eos_id, spec.pad_id = 0, 1, 2, -1
    del spec.control_symbols[:]
    model.normalizer_spec.add_dummy_prefix = True
    path.write_bytes(model.SerializeToString())
    return copies


def foreign_folder(path, **changes):
    sizes = {
        "vocab_size": 336,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    } | changes
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, initializer_range=0.2))
    model.save_pretrained(path)
    return model, foreign_tokenizer(path / "tokenizer.model")


@pytest.mark.parametrize("tied", [False, True])
def test_a_foreign_llama_keeps_its_logits_and_its_pieces(tmp_path, tied):
    theirs, pieces = foreign_folder(tmp_path / "folder", tie_word_embeddings=tied)
    config = import_folder(tmp_path / "folder", tmp_path / "iter_0000000")
    assert (config.model.key_value_heads, config.model.rotary_base, config.model.tie_embeddings) == (2, 5000.0, tied)
    ours = load(tmp_path / "iter_0000000")
    assert [ours.tokenizer.piece(token) for token in range(len(pieces))] == [piece.piece for piece in pieces]
    tokens = torch.randint(3, len(pieces), (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(tokens).logits[..., : len(pieces)]
    found = ours.logits(tokens)[..., : len(pieces)]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert ours.tokenizer.vocabulary_size == len(pieces) + 2
    assert ours.shape.start_id == ours.tokenizer.eos_id == 2
    new_row = theirs.get_input_embeddings().weight.mean(0)
    torch.testing.assert_close(ours.embedding.weight[ours.tokenizer.mask_id], new_row)
    torch.testing.assert_close(ours.embedding.weight[ours.tokenizer.pad_id], new_row)
    text = "def print\n    return [MASK] 漢"
    assert ours.tokenizer.decode(ours.tokenizer.encode(text)) == text
    assert generate(ours, [[5, 6]], method="self_verified", new_tokens=5)[0].tokens


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("hidden_act", "gelu", "hidden_act is 'gelu'"),
        ("attention_bias", True, "attention_bias is True"),
        ("mlp_bias", True, "mlp_bias is True"),
        ("architectures", ["Qwen2ForCausalLM"], "is a Qwen2ForCausalLM; valid are LlamaForCausalLM"),
        ("rope_parameters", {"rope_type": "llama3", "rope_theta": 1.0}, "rope_type is 'llama3'"),
        ("rope_scaling", {"type": "linear", "factor": 2.0}, "rope_type is 'linear'"),
        ("sliding_window", 8, "sliding_window is 8"),
        ("head_dim", 16, "head_dim 16 and num_key_value_heads 2 do not divide each other"),
        ("num_key_value_heads", 3, "num_key_value_heads 3 do not divide each other"),
        ("num_hidden_layers", 3, "holds no tensor model.layers.2"),
        ("num_hidden_layers", 1, "holds model.layers.1.input_layernorm.weight, of which config.json knows nothing"),
        ("intermediate_size", 64, "mlp.gate_proj.weight has shape (48, 32), by config.json it has (64, 32)"),
        ("intermediate_size", None, "intermediate_size is None; it must be a positive integer"),
        ("vocab_size", "336", "vocab_size is '336'; it must be a positive integer"),
        ("vocab_size", 400, "model.embed_tokens.weight has shape (336, 32), by config.json it has (400, 32)"),
        ("vocab_size", 300, "they do not match"),
    ],
)
def test_another_shape_is_refused_by_its_key(tmp_path, key, value, words):
    foreign_folder(tmp_path / "folder")
    path = tmp_path / "folder/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises((CheckpointError, DataError), match=re.escape(words)):
        import_folder(tmp_path / "folder", tmp_path / "iter_0000000")
    assert not (tmp_path / "iter_0000000").exists()


def test_a_folder_without_its_parts_is_refused(tmp_path):
    foreign_folder(tmp_path / "folder")
    (tmp_path / "folder/tokenizer.model").rename(tmp_path / "kept")
    with pytest.raises(DataError, match="a folder is imported with its tokenizer"):
        import_folder(tmp_path / "folder", tmp_path / "c")
    (tmp_path / "folder/tokenizer.model").write_bytes(b"no model at all")
    with pytest.raises(DataError, match="not a sentencepiece model"):
        import_folder(tmp_path / "folder", tmp_path / "c")
    (tmp_path / "kept").rename(tmp_path / "folder/tokenizer.model")
    weights = tmp_path / "folder/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged"):
        import_folder(tmp_path / "folder", tmp_path / "c")
    weights.unlink()
    with pytest.raises(CheckpointError, match=re.escape("holds no *.safetensors")):
        import_folder(tmp_path / "folder", tmp_path / "c")
    with pytest.raises(CheckpointError, match="no readable configuration"):
        import_folder(tmp_path, tmp_path / "c")


def test_no_file_of_a_folder_is_unpickled(tmp_path, hostile):
    foreign_folder(tmp_path / "folder")
    for name in ("config.json", "tokenizer.model", "model.safetensors"):
        path = tmp_path / "folder" / name
        sound = path.read_bytes()
        for content in hostile.files.values():
            path.write_bytes(content)
            with pytest.raises((CheckpointError, DataError), match=f"^{path}"):
                import_folder(tmp_path / "folder", tmp_path / "c")
        path.write_bytes(sound)
    assert not (tmp_path / "c").exists()


def test_other_files_of_a_folder_are_never_read(tmp_path, hostile):
    """Not the weights as a pickle, not the code that ``auto_map`` names."""
    folder = tmp_path / "folder"
    foreign_folder(folder)
    names = ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "model.safetensors.index.json")
    for name, content in zip(names, hostile.files.values(), strict=False):
        (folder / name).write_bytes(content)
    (folder / "modeling.py").write_text(f"import os\nos.mkdir({str(hostile.marker)!r})\n")
    path = folder / "config.json"
    named = {"auto_map": {"AutoConfig": "modeling.Config", "AutoModelForCausalLM": "modeling.Model"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | named))
    import_folder(folder, tmp_path / "iter_0000000")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=re.escape(f"{folder} holds no *.safetensors")):
        import_folder(folder, tmp_path / "c")


def test_decoding_is_timed_beside_transformers_which_writes_the_same(checkpoint):
    ratios = time_over_transformers(checkpoint, load(checkpoint), [prompt(4), prompt(9)], 10, repetitions=2)
    assert len(ratios) == 2
    assert min(ratios) > 0
    assert "median of 2" in describe(ratios)


def test_other_number_formats(checkpoint, tmp_path):
    export(checkpoint, tmp_path / "folder", "bfloat16")
    weights = load_file(tmp_path / "folder/model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
