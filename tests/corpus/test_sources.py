import gzip
import json
import sys

import pytest
import zstandard
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from card_scale.corpus.source_documents import documents
from card_scale.corpus.sources import InputSettings, scan, split_piece
from card_scale.errors import DataError
from tests.corpus.reading import read_texts

TEXTS = ["one", "", "zwei\nLinien\r\n", "漢字 🧿 [MASK]", "x" * 3000, "end"]


def lines(texts) -> bytes:
    return "".join(
        json.dumps({"id": n, "text": t}, ensure_ascii=n % 2 == 0) + "\n" for n, t in enumerate(texts)
    ).encode()


def test_a_text_file_is_a_document_byte_for_byte(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.py").write_bytes("a\r\n\tü".encode())
    (tmp_path / "a.py").write_bytes(b"")
    (tmp_path / "no.txt").write_bytes(b"other pattern")
    assert read_texts(tmp_path, patterns=("*.py",)) == ["", "a\r\n\tü"]
    assert read_texts(tmp_path, patterns=("*.py",), exclude=("sub/*",)) == [""]
    assert read_texts(tmp_path / "no.txt", patterns=("*.py",)) == ["other pattern"]


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=12), st.integers(1, 60))
def test_byte_ranges_partition_the_lines(tmp_path, texts, size):
    (tmp_path / "a.jsonl").write_bytes(lines(texts).rstrip(b"\n"))
    inputs = InputSettings((str(tmp_path),))
    whole = scan(inputs).pieces
    parts = [part for piece in whole for part in split_piece(piece, size)]
    assert sum(part.bytes for part in parts) == sum(piece.bytes for piece in whole)
    found = [document.text.decode() for part in parts for document in documents(part, inputs)]
    assert found == texts


GOOD = b'{"text": "a"}\n'


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", GOOD + b"{broken\n", r"a\.jsonl: line 2: not valid JSON"),
        ("a.jsonl", GOOD * 3 + b'{"body": "a"}\n', r"a\.jsonl: line 4: no key 'text', the object has 'body'"),
        ("a.jsonl", GOOD + b'["a"]', r"a\.jsonl: line 2: no JSON object"),
        ("a.jsonl", b'{"text": null}', r"a\.jsonl: line 1: 'text' is null"),
        ("a.jsonl", GOOD + b'{"text": "\xff"}', r"a\.jsonl: line 2: not valid UTF-8 \(byte 0xff"),
        ("a.jsonl", b'{"text": "\\ud800"}', r"a\.jsonl: line 1: a lone surrogate"),
        ("a.jsonl.gz", gzip.compress(GOOD + b"{", mtime=0), r"a\.jsonl\.gz: line 2: not valid JSON"),
        ("a.jsonl.gz", gzip.compress(GOOD * 99, mtime=0)[:-9], r"a\.jsonl\.gz: damaged or truncated"),
        ("a.jsonl.gz", GOOD, r"a\.jsonl\.gz: damaged or truncated"),
        (
            "a.jsonl.zst",
            zstandard.ZstdCompressor().compress(GOOD * 99)[:-5],
            r"a\.jsonl\.zst: damaged or truncated zstd file",
        ),
        ("a.jsonl.zst", GOOD, r"a\.jsonl\.zst: damaged or truncated zstd"),
        ("a.parquet", b"PAR1" + bytes(20) + b"PAR1", r"a\.parquet: damaged or no parquet"),
        ("a.txt", b"fine\nbroken \xe9\n", r"a\.txt: line 2: not valid UTF-8 \(byte 0xe9 at 12\)"),
        ("a.zip", b"", r"a\.zip: an archive"),
        ("a.parquet.gz", b"x", r"a\.parquet\.gz: parquet files are read uncompressed"),
        ("a.arrow", b"no arrow", r"a\.arrow: damaged or no Arrow file"),
    ],
)
def test_bad_content_is_named_by_file_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_texts(tmp_path / name)


@pytest.mark.parametrize(
    "name, library", [("a.parquet", "pyarrow"), ("a.arrow", "pyarrow"), ("a.jsonl.zst", "zstandard")]
)
def test_a_missing_library_is_named(tmp_path, monkeypatch, name, library):
    (tmp_path / name).write_bytes(b"x")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(DataError, match=rf"{name}: reading it needs {library}; install"):
        read_texts(tmp_path)


def test_invalid_text_can_be_left_out(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xe9")
    (tmp_path / "b.jsonl").write_bytes(GOOD + b'{"text": "\xff"}\n{"text": "\\ud800"}\n' + GOOD)
    assert read_texts(tmp_path, skip_invalid=True) == [None, "a", None, None, "a"]


def test_inputs_that_are_missing_empty_or_twice_are_named(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such file"):
        scan(InputSettings((str(tmp_path / "nowhere"),)))
    with pytest.raises(DataError, match=r"no file matches \*\.txt"):
        scan(InputSettings((str(tmp_path),)))
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(DataError, match=r"a\.txt: this file is an input twice"):
        scan(InputSettings((str(tmp_path), str(tmp_path / "a.txt"))))
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"b\.txt: cannot be read"):
        scan(InputSettings((str(tmp_path),)))
