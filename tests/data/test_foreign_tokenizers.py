"""Tokenizers of other shapes than this project's: their ids, that no text gives a control id, what is rewritten."""

import json
import re

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from card_scale.data.tokenizer import Tokenizer
from card_scale.errors import DataError
from tests.corpora import ADVERSARIAL
from tests.foreign_tokenizers import KEEPING_TEXT, SHAPES, TEXTS

NAMES = ["<|endoftext|>", "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_7|>", "<mask>", "[SEP]"]
NAMES += ["[CLS]", "[PAD]", "<bos>", "<|mask|>", "<extra_id_3>", "<|card_scale_mask|>"]
NAMES += ADVERSARIAL.split()
SYMBOLS = {
    "Llama 2, sentencepiece": {"pad": (400, "<pad>"), "unk": (0, "<unk>"), "bos": (1, "<s>"), "eos": (2, "</s>")},
    "T5, sentencepiece": {"pad": (0, "<pad>"), "unk": (2, "<unk>"), "bos": (47, "<s>"), "eos": (1, "</s>")},
    "ALBERT, sentencepiece": {"pad": (0, "<pad>"), "unk": (1, "<unk>"), "bos": (2, "[CLS]"), "eos": (3, "[SEP]")},
    "Gemma, sentencepiece": {"pad": (0, "<pad>"), "unk": (3, "<unk>"), "bos": (2, "<s>"), "eos": (1, "</s>")},
    "GPT-2, json": {"pad": (400, "<pad>"), "bos": (0, "<|endoftext|>"), "eos": (0, "<|endoftext|>")},
    "Llama 3, json": {"pad": (653, "<pad>"), "bos": (397, "<|begin_of_text|>"), "eos": (398, "<|end_of_text|>")},
    "Llama 2, json": {"pad": (400, "<pad>"), "unk": (0, "<unk>"), "bos": (1, "<s>"), "eos": (2, "</s>")},
    "BERT, json": {"pad": (0, "[PAD]"), "unk": (1, "[UNK]"), "bos": (2, "[CLS]"), "eos": (3, "[SEP]")},
    "T5, json": {"pad": (0, "<pad>"), "unk": (2, "<unk>"), "bos": (127, "<s>"), "eos": (1, "</s>")},
}
FORGED = "\U0010ffff0\U0010ffff"
"""What a control symbol of a tokenizer.json is called in memory."""
MASKS = {"ALBERT, sentencepiece": (4, "[MASK]"), "Gemma, sentencepiece": (4, "<mask>"), "BERT, json": (4, "[MASK]")}
"""Of those that have one; the others get one above all their ids."""
MASKS_ADDED = {"Llama 2, json": "<mask>", "T5, json": "<mask>"}
"""Where it has another name than [MASK], since that is a piece of text."""
TEXT = st.lists(
    st.one_of(
        st.sampled_from(
            ["def", "return", " ", "  ", "\n", "\t", "\r\n", "12", "7", "\u0301", "\ufb01", "漢", "\u2581"]
        ),
        st.sampled_from(NAMES),
        st.text(max_size=5),
    ),
    max_size=20,
).map("".join)


@pytest.fixture(scope="module", params=SHAPES)
def shape(request):
    return request.param


@pytest.fixture(scope="module")
def path(shape, tmp_path_factory):
    return SHAPES[shape](tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(path):
    return Tokenizer.load(path)


@pytest.fixture(scope="module")
def original(path):
    """The library itself on the file as it was: text → ids."""
    if path.suffix == ".json":
        theirs = tokenizers.Tokenizer.from_file(str(path))
        theirs.no_truncation()
        return lambda text: theirs.encode(text, add_special_tokens=False).ids
    return sentencepiece.SentencePieceProcessor(model_file=str(path)).encode


def test_symbols_are_found_or_added_above(shape, tokenizer):
    top = tokenizer.vocabulary_size - 1
    expected = {**SYMBOLS[shape], "mask": MASKS.get(shape, (top, MASKS_ADDED.get(shape, "[MASK]")))}
    assert {role: (token, tokenizer.piece(token)) for role, token in tokenizer.special_ids.items()} == expected
    assert {token for role, (token, _) in expected.items() if role != "unk"} <= tokenizer.control_ids
    assert tokenizer.mask_id not in {token for role, token in tokenizer.special_ids.items() if role != "mask"}


@given(text=st.lists(TEXT, max_size=3), forged=st.sampled_from([FORGED, FORGED * 2, ""]))
@settings(max_examples=150)
def test_no_text_gives_a_control_id(tokenizer, text, forged):
    text = forged.join(text)
    ids = tokenizer.encode(text)
    assert not tokenizer.control_ids & set(ids)
    assert all(0 <= token < tokenizer.vocabulary_size for token in ids)
    assert tokenizer.encode_batch([text])[0].tolist() == tokenizer.encode_batch([text.encode()])[0].tolist() == ids
    assert tokenizer.encode_batch([text])[0].dtype == "int32"


@given(text=TEXT)
@settings(max_examples=100)
def test_text_comes_back_where_it_is_said_to(shape, tokenizer, text):
    ids = tokenizer.encode(text)
    if shape in KEEPING_TEXT:
        assert tokenizer.rewrites == ()
        assert tokenizer.decode(ids) == text
        assert b"".join(map(tokenizer.piece_bytes, ids)) == text.encode()
    elif "Llama 2" in shape:
        assert [rewriting.partition(" (")[0] for rewriting in tokenizer.rewrites] == ["the sign U+2581"]
        assert tokenizer.decode(ids) == text.replace("\u2581", " ")


@pytest.mark.parametrize("text", TEXTS[:20])
def test_text_has_the_tokens_that_the_library_gives_it(tokenizer, original, text):
    plain = re.sub(r"[<\[].*?[>\]]", "", text)
    assert tokenizer.encode(plain) == original(plain)


def test_the_completed_file_is_all_that_is_needed(tokenizer, tmp_path):
    (tmp_path / tokenizer.file_name).write_bytes(tokenizer.content)
    again = Tokenizer.load(tmp_path / tokenizer.file_name)
    assert (again.sha256, again.special_ids, again.added_ids) == (tokenizer.sha256, tokenizer.special_ids, set())
    assert (again.control_ids, again.vocabulary_size) == (tokenizer.control_ids, tokenizer.vocabulary_size)
    assert again.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])


def test_control_symbols_decode_to_nothing(tokenizer):
    words = tokenizer.encode("return value")
    assert tokenizer.decode([tokenizer.eos_id, *words, tokenizer.mask_id, tokenizer.pad_id]) == "return value"
    assert all(tokenizer.piece_bytes(token) == b"" for token in tokenizer.control_ids)


def test_what_goes_on_keeps_its_space(tokenizer):
    both = tokenizer.encode("return value")
    for cut in range(1, len(both)):
        assert tokenizer.decode(both[:cut]) + tokenizer.continuation(both[cut:]) == "return value"
    streamed = b"".join(tokenizer.piece_bytes(token) for token in both).decode()
    assert streamed.lstrip(" ") == "return value"


def test_rewriting_is_named_with_an_example(tmp_path):
    said = Tokenizer.load(SHAPES["BERT, json"](tmp_path)).rewrites
    assert r"accents ('\xe9 e\u0301' becomes 'e e')" in said
    assert any(rewriting.startswith("leading, repeated and trailing spaces") for rewriting in said)


class TestRefusals:
    def tree(self, folder):
        (folder / "tokenizer_config.json").unlink(missing_ok=True)
        tree = json.loads(SHAPES["GPT-2, json"](folder).read_text())
        (folder / "tokenizer_config.json").unlink()
        return tree

    def refusal(self, folder, tree):
        (folder / "tokenizer.json").write_text(json.dumps(tree))
        with pytest.raises(DataError) as caught:
            Tokenizer.load(folder / "tokenizer.json")
        assert str(caught.value).startswith(f"{folder}/tokenizer.json: ")
        return str(caught.value)

    def test_nothing_ends_a_document(self, tmp_path):
        text = json.dumps(self.tree(tmp_path)).replace("<|endoftext|>", "<|stop|>")
        said = self.refusal(tmp_path, json.loads(text))
        assert 'Write {"eos_token": "NAME"} into tokenizer_config.json beside it' in said
        assert "<|stop|>" in said
        (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|stop|>"}}')
        assert Tokenizer.load(tmp_path / "tokenizer.json").eos_id == 0

    def test_an_end_that_is_no_piece(self, tmp_path):
        tree = self.tree(tmp_path)
        (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|stop|>"}')
        assert "call the end of a document '<|stop|>', which is no piece" in self.refusal(tmp_path, tree)

    @pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model": {"vocab": {}}}'])
    def test_what_is_no_tokenizer(self, tmp_path, content):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(DataError, match=f"^{tmp_path}/tokenizer.json: "):
            Tokenizer.load(tmp_path / "tokenizer.json")

    def test_an_unknown_kind_of_model(self, tmp_path):
        tree = self.tree(tmp_path)
        tree["model"]["type"] = "Runes"
        assert "not a tokenizer.json that this version of tokenizers reads" in self.refusal(tmp_path, tree)

    def test_a_control_symbol_that_text_spells(self, tmp_path):
        tree = self.tree(tmp_path)
        tree["normalizer"] = {"type": "Replace", "pattern": {"String": "<|endoftext|>"}, "content": FORGED}
        tree["pre_tokenizer"] = None
        tree["model"] = {"type": "WordLevel", "vocab": {"<|endoftext|>": 0, "a": 1}, "unk_token": "a"}
        tree["added_tokens"] = tree["added_tokens"][:1]
        said = self.refusal(tmp_path, tree)
        assert "text that contains '<|endoftext|>' gives the control symbol '<|endoftext|>'" in said
