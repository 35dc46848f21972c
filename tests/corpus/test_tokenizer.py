import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from card_scale.corpus.sources import InputSettings
from card_scale.corpus.tokenizer_training import TokenizerSettings, make_tokenizer, train_tokenizer
from card_scale.data.tokenizer import CONTROL_IDS, MASK_ID, Tokenizer
from card_scale.errors import DataError
from tests.corpora import ADVERSARIAL

FRAGMENTS = [
    "[MASK]",
    "<s>",
    "</s>",
    "<pad>",
    "<unk>",
    "<0x00>",
    "[MASK",
    "]",
    " ",
    "\n",
    "\t",
    "\r\n",
    "\x00",
    "⁇",
    "\u2581",  # sentencepiece's own sign for a space
    "\u2585",  # and for what is unknown
    "a",
]
CHARACTERS = st.characters(exclude_categories=["Cs"])
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(CHARACTERS, max_size=5), max_size=20).map("".join)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path):
    return Tokenizer.load(tokenizer_path)


@given(TEXTS)
def test_text_never_gives_a_control_id_and_comes_back_unchanged(tokenizer, text):
    ids = tokenizer.encode(text)
    assert not set(ids) & {*CONTROL_IDS, 1}
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text])[0].tolist() == tokenizer.encode_batch([text.encode()])[0].tolist() == ids


@given(TEXTS)
def test_the_bytes_of_the_pieces_are_those_of_the_text(tokenizer, text):
    assert b"".join(map(tokenizer.piece_bytes, tokenizer.encode(text))) == text.encode()


@pytest.mark.parametrize("token", [*CONTROL_IDS, 1])
def test_special_symbols_stand_for_no_bytes(tokenizer, token):
    assert tokenizer.piece_bytes(token) == b""


def test_adversarial_text_trained_on_gives_no_control_id(tokenizer):
    """The fixture's tokenizer was trained on documents that contain the special symbols as text."""
    assert not set(tokenizer.encode(ADVERSARIAL)) & {*CONTROL_IDS, 1}


def test_control_symbols_decode_to_nothing(tokenizer):
    assert tokenizer.decode([2, *tokenizer.encode("x y"), MASK_ID, 3, 0]) == "x y"
    assert tokenizer.piece(MASK_ID) == "[MASK]"


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_training_is_deterministic(model_type):
    generator = random.Random(2)
    syllables = ["ka", "to", "mi", "ru", "se", "no", "lan", "der"]
    words = ["".join(generator.choices(syllables, k=generator.randrange(1, 5))) for _ in range(3000)]
    texts = [" ".join(words[i : i + 100]) + "\n" for i in range(0, 3000, 100)]
    first = train_tokenizer(iter(texts), 400, model_type)
    assert first == train_tokenizer(texts, 400, model_type)


@pytest.mark.parametrize("size, message", [(100, "at least 262"), (262, "262"), (50_000, "50000")])
def test_impossible_vocabulary_sizes_are_named(texts, size, message):
    with pytest.raises(DataError, match=message):
        train_tokenizer(texts, size)


def test_no_text_is_an_error():
    with pytest.raises(DataError, match="no text"):
        train_tokenizer(["", ""], 400)


@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_an_unreadable_model_is_named(tmp_path, content):
    path = tmp_path / "x.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.model"):
        Tokenizer.load(path)


class TestMakeTokenizer:
    @pytest.fixture
    def settings(self, corpus):
        return TokenizerSettings(InputSettings((str(corpus),)), 400, "bpe", 10**6)

    def test_the_same_again_does_nothing(self, settings, tmp_path):
        path = tmp_path / "below" / "t.model"
        first, trained = make_tokenizer(settings, path)
        assert trained
        written = path.stat().st_mtime_ns
        again, trained = make_tokenizer(settings, path)
        assert not trained
        assert (again.sha256, path.stat().st_mtime_ns) == (first.sha256, written)

    def test_another_setting_is_named(self, settings, tmp_path):
        make_tokenizer(settings, tmp_path / "t.model")
        other = TokenizerSettings(settings.inputs, 401, "bpe", 10**6)
        with pytest.raises(DataError, match=r"vocabulary_size is 401 \(then 400\)"):
            make_tokenizer(other, tmp_path / "t.model")

    def test_a_foreign_file_is_not_replaced(self, settings, tmp_path, tokenizer_path):
        (tmp_path / "t.model").write_bytes(tokenizer_path.read_bytes())
        with pytest.raises(DataError, match="not made by this tool"):
            make_tokenizer(settings, tmp_path / "t.model")

    def test_a_sample_is_enough(self, corpus, tmp_path):
        tokenizer, _ = make_tokenizer(
            TokenizerSettings(InputSettings((str(corpus),)), 330, "bpe", 20_000), tmp_path / "t.model"
        )
        assert tokenizer.vocabulary_size == 330
