import csv

import pytest

from card_scale.corpus.sources import InputSettings, scan
from card_scale.errors import DataError
from tests.corpus.reading import read_documents, read_texts


def test_quoted_fields_keep_their_bytes(tmp_path):
    (tmp_path / "a.csv").write_bytes(
        'id,body\r\n1,plain\r\n2,"two\r\nlines\n and ""quotes"", commas"\r\n\r\n3,\r\n4,"ü\t"'.encode()
    )
    found = read_documents(tmp_path, text_key="body")
    assert [(document.record, document.text.decode()) for document in found] == [
        (0, "plain"),
        (1, 'two\r\nlines\n and "quotes", commas'),
        (2, ""),
        (3, "ü\t"),
    ]


def test_fields_may_be_longer_than_the_library_takes_by_itself(tmp_path):
    (tmp_path / "a.tsv").write_text("text\tid\n" + "long " * 50_000 + "\t1\n")
    assert read_texts(tmp_path) == ["long " * 50_000]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"body,n\na,1\n", r"a\.csv: no column 'text', the file has 'body', 'n'; name the column with --text-key"),
        (b"text,text\na,b\n", r"a\.csv: 2 columns are named 'text'"),
        (b"text,n\na,1\na,b,2\n", r"a\.csv: row 1: 3 fields, the header has 2; quote"),
        (b"text,n\na,1\na\n", r"a\.csv: row 1: 1 fields, the header has 2"),
        (b'text,n\na,1\n"b,2\n', r"a\.csv: row 1: not valid CSV .unexpected end of data"),
        (b'text,n\n"a"b,1\n', r"a\.csv: row 0: not valid CSV"),
        (b'"text,n\n', r"a\.csv: the header is not valid CSV"),
        (b"text,n\na,1\n\xff,2\n", r"a\.csv: row 1: not valid UTF-8 \(byte 0xff at 0\)"),
    ],
)
def test_what_is_wrong_is_named_by_its_row(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_texts(tmp_path)


def test_what_is_no_utf8_is_left_out_by_choice(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text,n\na,1\n\xff,2\nb,\xff\n")
    assert read_texts(tmp_path, skip_invalid=True) == ["a", None, "b"]


def test_a_missing_column_is_named_before_anything_is_read(tmp_path):
    (tmp_path / "a.csv").write_text("body\na\n")
    with pytest.raises(DataError, match="no column 'text'"):
        scan(InputSettings((str(tmp_path),)))


def test_a_file_without_a_row_has_no_documents(tmp_path):
    (tmp_path / "a.csv").write_text("text\n")
    (tmp_path / "b.csv").write_text("")
    assert read_texts(tmp_path) == []
    assert csv.field_size_limit() > 1 << 20
