import gzip
import json
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from card_scale.corpus.source_documents import documents
from card_scale.corpus.sources import InputSettings, scan, split_piece
from card_scale.errors import DataError

TEXTS = ["one", "", "zwei\nLinien\r\n", "漢字 🧿 [MASK]", "x" * 3000, "end"]


def lines(texts) -> bytes:
    return "".join(
        json.dumps({"id": n, "text": t}, ensure_ascii=n % 2 == 0) + "\n" for n, t in enumerate(texts)
    ).encode()


def zstandard_frames(data: bytes) -> bytes:
    half = len(data) // 2
    compressor = zstandard.ZstdCompressor()
    return compressor.compress(data[:half]) + compressor.compress(data[half:])


def read(path: Path, **settings) -> list[str | None]:
    inputs = InputSettings((str(path),), **settings)
    found = [document for piece in scan(inputs).pieces for document in documents(piece, inputs)]
    return [document.text.decode() if document.valid else None for document in found]


@pytest.mark.parametrize(
    "name, encode",
    [
        ("a.jsonl", bytes),
        ("a.jsonl.gz", gzip.compress),
        ("b.jsonl.gz", lambda data: gzip.compress(data[:100]) + gzip.compress(data[100:])),
        ("a.jsonl.zst", zstandard.ZstdCompressor().compress),
        ("b.jsonl.zst", zstandard_frames),
    ],
)
@pytest.mark.parametrize("end", [b"", b"\n\n  \n"])
def test_json_lines_come_back_in_order(tmp_path, name, encode, end):
    (tmp_path / name).write_bytes(encode(lines(TEXTS).rstrip(b"\n") + end))
    assert read(tmp_path / name) == TEXTS


@pytest.mark.parametrize(
    "kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())]
)
def test_parquet_rows_come_back_in_order_a_row_group_a_piece(tmp_path, kind):
    table = pyarrow.table({"id": range(len(TEXTS)), "body": pyarrow.array(TEXTS).cast(kind)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    inputs = InputSettings((str(tmp_path),), text_key="body")
    pieces = scan(inputs).pieces
    assert len(pieces) == 3
    found = [document for piece in pieces for document in documents(piece, inputs)]
    assert [(document.record, document.text.decode()) for document in found] == list(enumerate(TEXTS))


def test_a_text_file_is_a_document_byte_for_byte(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.py").write_bytes("a\r\n\tü".encode())
    (tmp_path / "a.py").write_bytes(b"")
    (tmp_path / "no.txt").write_bytes(b"other pattern")
    assert read(tmp_path, patterns=("*.py",)) == ["", "a\r\n\tü"]
    assert read(tmp_path, patterns=("*.py",), exclude=("sub/*",)) == [""]
    assert read(tmp_path / "no.txt", patterns=("*.py",)) == ["other pattern"]


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
        ("a.jsonl", GOOD * 3 + b'{"body": "a"}\n', r"a\.jsonl: line 4: no key 'text', the line has 'body'"),
        ("a.jsonl", GOOD + b'["a"]', r"a\.jsonl: line 2: no JSON object"),
        ("a.jsonl", b'{"text": null}', r"a\.jsonl: line 1: 'text' is NoneType"),
        ("a.jsonl", GOOD + b'{"text": "\xff"}', r"a\.jsonl: line 2: not valid UTF-8 \(byte 0xff"),
        ("a.jsonl", b'{"text": "\\ud800"}', r"a\.jsonl: line 1: a lone surrogate"),
        ("a.jsonl.gz", gzip.compress(GOOD + b"{", mtime=0), r"a\.jsonl\.gz: line 2: not valid JSON"),
        ("a.jsonl.gz", gzip.compress(GOOD * 99, mtime=0)[:-9], r"a\.jsonl\.gz: damaged or truncated"),
        ("a.jsonl.gz", GOOD, r"a\.jsonl\.gz: damaged or truncated"),
        ("a.jsonl.zst", zstandard.ZstdCompressor().compress(GOOD * 99)[:-5], r"a\.jsonl\.zst: truncated"),
        ("a.jsonl.zst", GOOD, r"a\.jsonl\.zst: damaged"),
        ("a.parquet", b"PAR1" + bytes(20) + b"PAR1", r"a\.parquet: damaged or no parquet"),
        ("a.txt", b"fine\nbroken \xe9\n", r"a\.txt: line 2: not valid UTF-8 \(byte 0xe9 at 12\)"),
        ("a.txt.gz", b"", r"a\.txt\.gz: a compressed file"),
    ],
)
def test_bad_content_is_named_by_file_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


def test_a_parquet_file_without_the_column_is_named_before_anything_is_read(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: no column 'text', the file has 'body', 'n'"):
        scan(InputSettings((str(tmp_path),)))
    with pytest.raises(DataError, match=r"a\.parquet: column 'n' holds int64"):
        scan(InputSettings((str(tmp_path),), text_key="n"))


@pytest.mark.parametrize("name, library", [("a.parquet", "pyarrow"), ("a.jsonl.zst", "zstandard")])
def test_a_missing_library_is_named(tmp_path, monkeypatch, name, library):
    (tmp_path / name).write_bytes(b"x")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(DataError, match=rf"{name}: reading it needs {library}; install"):
        read(tmp_path)


def test_null_and_invalid_parquet_rows_are_named(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: row 1: 'text' is null"):
        read(tmp_path)
    broken = pyarrow.Array.from_buffers(
        pyarrow.string(), 2, [None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"a\xff")]
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": broken}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: row 1: not valid UTF-8"):
        read(tmp_path)
    assert read(tmp_path, skip_invalid=True) == ["a", None]


def test_invalid_text_can_be_left_out(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xe9")
    (tmp_path / "b.jsonl").write_bytes(GOOD + b'{"text": "\xff"}\n{"text": "\\ud800"}\n' + GOOD)
    assert read(tmp_path, skip_invalid=True) == [None, "a", None, None, "a"]


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
