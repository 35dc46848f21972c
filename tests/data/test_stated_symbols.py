"""What the files beside a foreign tokenizer may make of its pieces: no text is lost, and the file alone is enough."""

import io
import json

import pytest
import sentencepiece

from card_scale.data.tokenizer import Tokenizer
from card_scale.errors import DataError
from tests.foreign_tokenizers import SHAPES, TEXTS

TEXT = "Hi! the eee! cat"


def load(folder, shape, **names):
    """The tokenizer of a shape with names stated beside it."""
    path = SHAPES[shape](folder)
    sidecar = folder / "tokenizer_config.json"
    stated = json.loads(sidecar.read_text()) if sidecar.is_file() else {}
    sidecar.write_text(json.dumps(stated | names))
    return Tokenizer.load(path)


def load_sentencepiece(folder, stated, **options):
    """A small model with byte fallback and the names stated beside it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS[:20]),
        model_writer=model,
        minloglevel=2,
        vocab_size=340,
        num_threads=1,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.98,
        add_dummy_prefix=False,
        **options,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))
    return Tokenizer.load(folder / "tokenizer.model")


def names(tokenizer):
    return {role: tokenizer.piece(token) for role, token in tokenizer.special_ids.items()}


def assert_alone(tokenizer, folder):
    """The completed file gives the same where nothing lies beside it."""
    folder.mkdir()
    (folder / tokenizer.file_name).write_bytes(tokenizer.content)
    again = Tokenizer.load(folder / tokenizer.file_name)
    assert (again.sha256, again.special_ids, again.added_ids) == (tokenizer.sha256, tokenizer.special_ids, set())
    assert (again.control_ids, again.encode(TEXT)) == (tokenizer.control_ids, tokenizer.encode(TEXT))


@pytest.mark.parametrize("role", ["pad", "bos", "mask"])
@pytest.mark.parametrize("shape", ["GPT-2, json", "Gemma, sentencepiece"])
def test_a_piece_of_text_becomes_no_control_symbol(tmp_path, shape, role):
    tokenizer = load(tmp_path, shape, **{f"{role}_token": "e"})
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.rewrites == ()
    assert "e" not in names(tokenizer).values()


@pytest.mark.parametrize("shape", ["GPT-2, json", "Gemma, sentencepiece"])
def test_an_end_that_is_a_piece_of_text_is_refused(tmp_path, shape):
    with pytest.raises(
        DataError, match=r"end of a document 'e', which is a piece of text.*Write .*special symbols are"
    ):
        load(tmp_path, shape, eos_token="e")


@pytest.mark.parametrize(
    "shape, unknown, pad",
    [
        ("Llama 2, sentencepiece", "<unk>", "<pad>"),
        ("Llama 2, json", "<unk>", "<pad>"),
        ("BERT, json", "[UNK]", "[PAD]"),
        ("T5, json", "<unk>", "<pad>"),
    ],
)
def test_the_unknown_symbol_neither_pads_nor_begins_a_text(tmp_path, shape, unknown, pad):
    plain = load(tmp_path, shape)
    tokenizer = load(tmp_path, shape, pad_token=unknown, bos_token=unknown)
    assert names(tokenizer)["pad"] == pad
    assert tokenizer.special_ids["unk"] == plain.special_ids["unk"] not in tokenizer.control_ids
    assert tokenizer.encode("a\ue000b") == plain.encode("a\ue000b")


def test_where_the_unknown_symbol_ends_documents_it_may_pad_too(tmp_path):
    tokenizer = load(tmp_path, "GPT-2, json", pad_token="<|endoftext|>")
    assert tokenizer.pad_id == tokenizer.eos_id == 0


@pytest.mark.parametrize(
    "options, mask",
    [
        ({"user_defined_symbols": ["<mask_1>"]}, "<mask_1>"),
        ({"control_symbols": ["<mask_1>"]}, "<mask_1>"),
        ({"control_symbols": ["[MASK]", "<mask>"]}, "<mask>"),
        ({"control_symbols": ["[MASK]", "<mask>"]}, "[MASK]"),
        ({"control_symbols": ["<mask>", "<mask_1>"], "pad_id": 3}, "<mask_1>"),
    ],
)
def test_the_stated_mask_is_the_mask_also_without_the_files_beside_it(tmp_path, options, mask):
    tokenizer = load_sentencepiece(tmp_path, {"mask_token": mask}, **options)
    original = sentencepiece.SentencePieceProcessor(model_proto=(tmp_path / "tokenizer.model").read_bytes())
    assert tokenizer.mask_id == original.piece_to_id(mask)
    assert tokenizer.decode(tokenizer.encode(f"a {mask} b")) == f"a {mask} b"
    assert_alone(tokenizer, tmp_path / "alone")


def test_a_mask_gets_a_name_of_its_own_where_all_common_ones_are_taken(tmp_path):
    roles = {"eos_piece": "[MASK]", "bos_piece": "<mask>", "pad_piece": "<|mask|>", "pad_id": 3}
    tokenizer = load_sentencepiece(tmp_path, {}, **roles)
    assert tokenizer.added_ids == {tokenizer.mask_id} == {340}
    assert_alone(tokenizer, tmp_path / "alone")


@pytest.mark.parametrize("options", [{}, {"pad_id": 3, "control_symbols": ["[MASK]"]}])
def test_the_stated_end_goes_before_the_models_own(tmp_path, options):
    stated = {"eos_token": "<|im_end|>", "sep_token": "</s>"}
    tokenizer = load_sentencepiece(tmp_path, stated, user_defined_symbols=["<|im_end|>"], **options)
    assert names(tokenizer)["eos"] == "<|im_end|>"
    assert tokenizer.decode(tokenizer.encode("a<|im_end|>b")) == "a<|im_end|>b"
    assert_alone(tokenizer, tmp_path / "alone")


def test_a_separator_does_not_go_before_the_models_own_end(tmp_path):
    tokenizer = load_sentencepiece(tmp_path, {"sep_token": "<sep>"}, user_defined_symbols=["<sep>"])
    assert names(tokenizer)["eos"] == "</s>"


def test_a_complete_model_stays_as_it_is_where_the_files_beside_it_agree(tmp_path):
    stated = {"eos_token": "</s>", "pad_token": "<unk>", "mask_token": "[MASK]"}
    tokenizer = load_sentencepiece(tmp_path, stated, pad_id=3, control_symbols=["[MASK]"])
    assert tokenizer.content == (tmp_path / "tokenizer.model").read_bytes()
    assert names(tokenizer) == {"pad": "<pad>", "unk": "<unk>", "bos": "<s>", "eos": "</s>", "mask": "[MASK]"}


@pytest.mark.parametrize("shape", ["GPT-2, json", "Llama 3, json", "BERT, json", "T5, json"])
def test_a_completed_file_frames_cuts_and_varies_nothing(tmp_path, shape):
    path = SHAPES[shape](tmp_path)
    tree = json.loads(path.read_text())
    tree["model"] |= {"dropout": 0.5} if tree["model"]["type"] == "BPE" else {}
    path.write_text(json.dumps(tree))
    kept = json.loads(Tokenizer.load(path).content)
    assert [kept[key] for key in ("post_processor", "truncation", "padding")] == [None] * 3
    assert kept["model"].get("dropout") is None
