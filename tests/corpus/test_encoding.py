import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from card_scale.corpus.encoding import DocumentEncoder
from card_scale.corpus.tokenizer_training import train_tokenizer
from card_scale.data.tokenizer import Tokenizer
from tests.corpora import ADVERSARIAL, WORDS, make_texts
from tests.foreign_tokenizers import SHAPES

fragments = st.sampled_from([*WORDS, " ", "\n    ", "12345", "漢", "🧿", "\u2581", "e\u0301", "Ω", "\r\n", ADVERSARIAL])


def ignore(_size: int) -> None:
    """Report nothing."""


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path):
    return Tokenizer.load(tokenizer_path)


@pytest.fixture(scope="module")
def unigram(tmp_path_factory):
    path = tmp_path_factory.mktemp("unigram") / "unigram.model"
    path.write_bytes(train_tokenizer(make_texts(60, seed=5), 320, "unigram"))
    return Tokenizer.load(path)


@given(st.lists(fragments, max_size=60).map("".join), st.integers(1, 50))
def test_a_document_in_chunks_has_the_ids_of_the_whole(tokenizer, text, chunk):
    (found,) = DocumentEncoder(tokenizer, 1, chunk).encode([text.encode()], ignore)
    assert found.tolist() == tokenizer.encode(text)


@given(st.lists(fragments, max_size=60).map("".join), st.integers(1, 50))
def test_a_unigram_model_finds_a_segmentation_as_likely_as_that_of_the_whole(unigram, text, chunk):
    def likelihood(ids):
        return sum(unigram._processor.get_score(int(token)) for token in ids)

    (found,) = DocumentEncoder(unigram, 1, chunk).encode([text.encode()], ignore)
    assert likelihood(found) == pytest.approx(likelihood(unigram.encode(text)), rel=1e-5)
    assert unigram.decode(found) == text


def test_chunks_are_as_long_as_asked_for_where_pieces_do_not_reach_across(tokenizer):
    text = "\n".join(make_texts(20, seed=2)).encode()
    chunks = list(DocumentEncoder(tokenizer, 1, 200)._chunks(text))
    assert b"".join(chunks) == text
    assert len(chunks) > 30
    assert max(map(len, chunks)) < 300


def test_text_that_cannot_be_cut_stays_whole(tokenizer):
    text = "  " * 5000  # the vocabulary has pieces of several spaces
    assert list(DocumentEncoder(tokenizer, 1, 1)._chunks(text.encode())) == [text.encode()]
    (found,) = DocumentEncoder(tokenizer, 1, 100).encode([text.encode()], ignore)
    assert found.tolist() == tokenizer.encode(text)


def test_short_and_long_documents_come_in_order(tokenizer):
    generator = random.Random(0)
    texts = ["".join(generator.choices(WORDS, k=generator.choice([0, 1, 500]))).encode() for _ in range(20)]
    reported = []
    found = list(DocumentEncoder(tokenizer, 100, 50).encode(texts, reported.append))
    assert [ids.tolist() for ids in found] == [tokenizer.encode(text) for text in texts]
    assert all(ids.dtype == np.int32 for ids in found)
    assert sum(reported) == sum(map(len, texts))
    assert max(reported) < 150
    assert list(DocumentEncoder(tokenizer).encode([], ignore)) == []


@pytest.mark.parametrize("shape", SHAPES)
def test_a_foreign_tokenizer_encodes_long_documents_as_it_encodes_them(shape, tmp_path):
    """Most put a space before each text, or divide or rewrite it by rules of their own: they are not cut."""
    foreign = Tokenizer.load(SHAPES[shape](tmp_path))
    text = "\n".join(make_texts(20, seed=3)).encode()
    (found,) = DocumentEncoder(foreign, 1, 10).encode([text], ignore)
    assert found.tolist() == foreign.encode(text)
