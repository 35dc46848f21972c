import itertools

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from card_scale.corpus.document_parts import SMALLEST_PARTS, PartSizes
from card_scale.corpus.sources import InputSettings, scan
from card_scale.errors import DataError
from tests.corpus.reading import COMPRESS, read_documents

fragments = ["a", "b ", "\n", "\r\n", "\n\n", "ü", "漢", "🧿", "word " * 9]
texts = st.lists(st.sampled_from(fragments), max_size=40).map("".join) | st.lists(
    st.sampled_from(fragments), min_size=60, max_size=150
).map("".join)
sizes = st.integers(SMALLEST_PARTS, 150)


@given(texts, sizes)
def test_parts_are_the_document_and_of_the_size_that_was_asked_for(text, size):
    content = text.encode()
    parts = PartSizes(size).split(content)
    assert b"".join(parts) == content
    assert [part.decode() for part in parts if part] == [part.decode() for part in parts] or not content
    assert max(map(len, parts)) <= size
    assert len(parts) == 1 or min(map(len, parts)) >= size // 4
    assert (len(parts) == 1) == (len(content) <= size)
    assert not any(left.endswith(b"\r") and right.startswith(b"\n") for left, right in itertools.pairwise(parts))


def test_no_part_is_too_short_or_too_long_whatever_the_length():
    for size in (64, 65, 66, 67, 100):
        for length in range(size + 1, 4 * size):
            parts = PartSizes(size).split(b"x" * length)
            assert sum(map(len, parts)) == length
            assert size // 4 <= min(map(len, parts)) <= max(map(len, parts)) <= size


@given(st.binary(max_size=500), sizes)
def test_nothing_is_lost_of_what_is_no_utf8(content, size):
    assert b"".join(PartSizes(size).split(content)) == content


@pytest.mark.parametrize(
    "text, first",
    [
        ("line\n" * 5 + "\n" + "word " * 40, "line\n" * 5 + "\n"),  # the end of a paragraph
        ("line\r\n" * 4 + "\r\n" + "word " * 40, "line\r\n" * 4 + "\r\n"),
        ("line\n" * 6 + "word " * 40, "line\n" * 6),  # of a line
        ("word " * 60, ("word " * 60)[:50]),  # the nominal place
        ("x" * 49 + "\r\n" + "x" * 100, "x" * 49),  # CR and LF stay together
        ("漢" * 100, "漢" * 16),  # 48 bytes: the last character that ends before the nominal place
    ],
)
def test_a_cut_is_at_the_end_of_a_paragraph_else_of_a_line_else_of_a_character(text, first):
    assert PartSizes(100).split(text.encode())[0].decode() == first


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(texts, sizes, st.integers(1, 400), st.sampled_from(sorted(COMPRESS)))
def test_a_file_has_the_same_parts_from_any_range_and_in_any_compression(tmp_path, text, size, piece, ending):
    content = text.encode()
    path = tmp_path / f"a.txt{ending}"
    path.write_bytes(COMPRESS[ending](content))
    expected = PartSizes(size).split(content)
    found = read_documents(path, size=piece, split_documents=size)
    assert [document.text for document in found] == expected
    numbers = list(range(len(expected))) if len(expected) > 1 else [None]
    assert [(document.record, document.part) for document in found] == [(0, number) for number in numbers]


def test_the_documents_of_every_format_are_split(tmp_path):
    long, short = "line of text\n" * 20, "short"
    (tmp_path / "a.jsonl").write_text(f'{{"text": {long!r}}}\n{{"text": "{short}"}}\n'.replace("'", '"'))
    (tmp_path / "b.csv").write_text(f'text\n"{long}"\n{short}\n')
    parts = PartSizes(100).split(long.encode())
    expected = [(part, number) for number, part in enumerate(parts)] + [(short.encode(), None)]
    found = read_documents(tmp_path, split_documents=100)
    assert [(document.text, document.part) for document in found] == expected * 2


def test_invalid_text_costs_its_part_alone(tmp_path):
    content = b"fine line of text\n" * 30 + b"broken \xff line\n" + b"fine line of text\n" * 30
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.txt: part \d+, line \d+ of it: not valid UTF-8 \(byte 0xff"):
        read_documents(tmp_path, split_documents=100)
    found = read_documents(tmp_path, split_documents=100, skip_invalid=True)
    assert [document.left_out for document in found].count("invalid_skipped") == 1
    assert b"".join(document.text for document in found).count(b"fine line") > 50


def test_parts_can_be_too_small(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match="--split-documents 63: must be at least 64 bytes"):
        scan(InputSettings((str(tmp_path),), split_documents=63))
