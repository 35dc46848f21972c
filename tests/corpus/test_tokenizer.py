import io
import random
import threading

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from card_scale import waiting
from card_scale.corpus import tokenizer_training
from card_scale.corpus.sources import InputSettings
from card_scale.corpus.tokenizer_training import TokenizerSettings, make_tokenizer, train_tokenizer
from card_scale.corpus.training_progress import TrainingProgress
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


BLOCKS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"


def test_signs_of_sentencepiece_cost_no_text_around_them():
    """It drops whole sentences that hold U+2585: here all that have capitals."""
    texts = [f"LOADING THE MODEL {number}\n{BLOCKS}\n" for number in range(30)] + ["small letters\n"] * 30
    path_pieces = pieces_of(train_tokenizer(texts, 330))
    assert any(len(piece) > 3 and piece.isupper() for piece in path_pieces)
    with pytest.raises(DataError, match="no text"):
        train_tokenizer(["\u2585\u2581", "\u2585"], 330)


def pieces_of(model):
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [processor.id_to_piece(token).strip("\u2581") for token in range(processor.get_piece_size())]


def test_texts_without_such_signs_are_trained_on_as_they_were(texts):
    """What sentencepiece makes of whole chunks of lines, without what this project adds to texts with such signs."""
    model = io.BytesIO()
    whole = [text for text in texts if len(text) <= 2000]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(whole),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        character_coverage=0.9995,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        control_symbols=["[MASK]"],
        max_sentence_length=1 << 24,
        num_threads=16,
        minloglevel=2,
    )
    assert train_tokenizer(whole, 400) == model.getvalue()


@pytest.mark.parametrize("model_type, length", [("bpe", 250_000), ("unigram", 40_000)])
def test_a_line_without_breaks_is_cut(model_type, length, monkeypatch):
    """Uncut, 230,000 characters in a line end unigram training with an internal error, which takes seconds to meet."""
    given = []
    cut = tokenizer_training._lines
    monkeypatch.setattr(tokenizer_training, "_lines", lambda text: (given.append(line) or line for line in cut(text)))
    generator = random.Random(1)
    words = ["".join(generator.choices("abcdefgh", k=4)) for _ in range(40)]
    line = "".join(generator.choices(words, k=length // 4))
    pieces = pieces_of(train_tokenizer([line], 300, model_type))
    assert sum(len(piece) > 1 and piece in line for piece in pieces) > 5
    assert "".join(given) == line
    assert max(map(len, given)) == 10_000


@pytest.mark.parametrize(
    "text, size, words",
    [
        (
            "".join(map(chr, range(0x4E00, 0x4E00 + 500))),
            300,
            r"300 is too small .* of at least 7\d\d$",
        ),
        (
            "abc def\n" * 9,
            5000,
            r"5000 is more than 72 characters of text fill; .* of at most \d+, or more text",
        ),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_named_with_one_that_does(tmp_path, text, size, words):
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    wanted = TokenizerSettings(InputSettings((str(tmp_path),)), size, "bpe", 10**6)
    with pytest.raises(DataError, match=f"^{tmp_path}: a vocabulary of {words}"):
        make_tokenizer(wanted, tmp_path / "t.model")


def test_an_error_of_reading_is_not_sentencepieces():
    def texts():
        yield "some text\n" * 100
        raise DataError("a.txt: not UTF-8")

    with pytest.raises(DataError, match=r"^a\.txt: not UTF-8$"):
        train_tokenizer(texts(), 300)


class TestProgress:
    def test_the_line_says_what_is_done(self):
        progress = TrainingProgress(3_000_000)
        progress.read(1_500_000)
        progress.take(2000)
        assert progress.line() == (
            "tokenizer: 2 MB of text read, of files of 3 MB; 2,000 characters in 1 parts are taken"
        )
        progress.begin_training()
        assert progress.line() == "tokenizer: training on 2,000 characters in 1 parts for 0 s"

    def test_reading_and_training_are_told(self, monkeypatch, texts):
        monkeypatch.setattr(waiting, "LONGEST_SECONDS", 0.001)
        reading, training = threading.Event(), threading.Event()
        train = sentencepiece.SentencePieceTrainer.train

        def say(line):
            if "are taken" in line:
                reading.set()
            if line.startswith("tokenizer: training on"):
                training.set()

        def texts_until_it_is_said():
            yield from texts
            assert reading.wait(60)

        def train_until_it_is_said(**settings):
            train(**settings)
            assert training.wait(60)

        monkeypatch.setattr(sentencepiece.SentencePieceTrainer, "train", train_until_it_is_said)
        progress = TrainingProgress(0)
        with waiting.told(progress.line, say, first_seconds=1e-4):
            train_tokenizer(texts_until_it_is_said(), 400, progress=progress)


class TestMakeTokenizer:
    @pytest.fixture
    def settings(self, corpus):
        return TokenizerSettings(InputSettings((str(corpus),)), 400, "bpe", 10**6)

    def test_the_same_again_does_nothing(self, settings, tmp_path):
        path = tmp_path / "below" / "t.model"
        first, trained, _ = make_tokenizer(settings, path)
        assert trained
        written = path.stat().st_mtime_ns
        again, trained, _ = make_tokenizer(settings, path)
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
        made = make_tokenizer(
            TokenizerSettings(InputSettings((str(corpus),)), 330, "bpe", 20_000), tmp_path / "t.model"
        )
        assert made.tokenizer.vocabulary_size == 330
