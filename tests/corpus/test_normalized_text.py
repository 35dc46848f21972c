import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from card_scale.corpus.normalized_text import NormalizedText, normalized
from card_scale.data.documents import Documents
from card_scale.data.tokenizer import Tokenizer

from .test_tokenizer import TEXTS


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path):
    return Tokenizer.load(tokenizer_path)


@pytest.fixture(scope="module")
def normal(tokenizer):
    return NormalizedText(tokenizer)


def oracle(text):
    letters = "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in text)
    return re.sub("[ \t\n\r\v\f]", "", letters).encode()


@given(TEXTS)
def test_the_normal_form_follows_its_definition(text):
    assert normalized(text.encode()) == oracle(text)


def test_every_ascii_character_has_its_normal_form():
    for code in range(128):
        assert normalized(bytes([code])) == oracle(chr(code)), code


@given(st.lists(TEXTS | st.sampled_from(["Def Return", "def\n\treturn", "return def", ""]), min_size=1, max_size=6))
def test_documents_are_equal_where_their_normal_forms_are(tokenizer, normal, texts):
    ids = [np.array(tokenizer.encode(text), dtype="<u2") for text in texts]
    ends = np.cumsum([len(part) for part in ids], dtype=np.int64)
    fingerprints = normal.fingerprints(Documents(np.arange(len(ids)), np.concatenate(ids), ends))
    digests = [normal.digest(part) for part in ids]
    forms = [oracle(text) for text in texts]
    for i in range(len(texts)):
        for j in range(i):
            assert (digests[i] == digests[j]) == (forms[i] == forms[j])
            assert (fingerprints[i] == fingerprints[j]) == (sorted(forms[i]) == sorted(forms[j]))


def test_how_a_text_was_cut_does_not_matter(tokenizer, normal):
    one = tokenizer.encode("return value 漢")
    other = [5 + byte for byte in "RETURN\tvalue漢\n".encode()]  # byte pieces stand behind the special symbols
    assert tokenizer.decode(other) == "RETURN\tvalue漢\n"
    assert len(one) != len(other)
    assert normal.digest(np.array(one)) == normal.digest(np.array(other))
