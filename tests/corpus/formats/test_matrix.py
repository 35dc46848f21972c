"""Every format in every compression it is read in gives the same documents, and a damaged one is named."""

import csv
import io
import json

import pytest

from card_scale.corpus.formats.names import COMPRESSIONS, kind_of
from card_scale.errors import DataError
from tests.corpus.reading import COMPRESS, read_texts

TEXTS = ["one", "", "zwei\nLinien\r\n", "漢字 🧿 [MASK]", 'quote " backslash \\ {[,', "x" * 3000, "\ufeffend "]


def json_lines(texts) -> bytes:
    lines = (json.dumps({"id": n, "text": t}, ensure_ascii=n % 2 == 0) for n, t in enumerate(texts))
    return "".join(line + "\n" for line in lines).encode()


def json_array(texts) -> bytes:
    return json.dumps([{"text": text, "more": {"text": ["]"]}} for text in texts]).encode()


def pretty_array(texts) -> bytes:
    return json.dumps([{"text": text} for text in texts], indent=2, ensure_ascii=False).encode()


def pretty_objects(texts) -> bytes:
    return "\n".join(json.dumps({"text": text}, indent=4) for text in texts).encode()


def table(delimiter: str):
    def write(texts) -> bytes:
        rows = io.StringIO(newline="")
        writer = csv.writer(rows, delimiter=delimiter)
        writer.writerow(["id", "text"])
        writer.writerows(enumerate(texts))
        return rows.getvalue().encode()

    return write


FORMATS = {
    "a.jsonl": json_lines,
    "b.JSONL": json_lines,
    "a.ndjson": json_lines,
    "a.json": json_lines,
    "b.json": json_array,
    "c.Json": pretty_array,
    "d.json": pretty_objects,
    "a.csv": table(","),
    "a.tsv": table("\t"),
}


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("name", FORMATS)
def test_documents_come_back_in_order(tmp_path, name, compression):
    assert set(COMPRESS) == {"", *COMPRESSIONS}
    (tmp_path / (name + compression)).write_bytes(COMPRESS[compression](FORMATS[name](TEXTS)))
    assert read_texts(tmp_path) == TEXTS


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py", "a.TXT", "a"])
def test_a_text_file_comes_back_byte_for_byte(tmp_path, name, compression):
    text = "\ufeff".join(TEXTS)
    (tmp_path / (name + compression)).write_bytes(COMPRESS[compression](text.encode()))
    assert read_texts(tmp_path / (name + compression)) == [text]


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("name", FORMATS)
def test_a_byte_order_mark_before_json_or_a_header_is_no_text(tmp_path, name, compression):
    content = b"\xef\xbb\xbf" + FORMATS[name](TEXTS)
    (tmp_path / (name + compression)).write_bytes(COMPRESS[compression](content))
    assert read_texts(tmp_path) == TEXTS


@pytest.mark.parametrize("compression", [ending for ending in COMPRESS if ending])
class TestDamage:
    def write(self, path, compression, cut=slice(None), times=1):
        content = COMPRESS[compression](json_lines(TEXTS * 20))
        path.write_bytes((content * times)[cut])
        return path

    @pytest.mark.parametrize("cut", [slice(-9), slice(-1), slice(40)])
    def test_a_file_that_is_cut_short_is_named(self, tmp_path, compression, cut):
        path = self.write(tmp_path / f"a.jsonl{compression}", compression, cut)
        with pytest.raises(
            DataError, match=rf"a\.jsonl\{compression}: damaged or truncated {COMPRESSIONS[compression]}"
        ):
            read_texts(path)

    def test_plain_content_under_a_compressed_name_is_named(self, tmp_path, compression):
        path = tmp_path / f"a.txt{compression}"
        path.write_bytes(b"plain text" * 10)
        with pytest.raises(DataError, match=rf"a\.txt\{compression}: damaged or truncated"):
            read_texts(path)

    @pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.csv"])
    def test_an_empty_file_is_named(self, tmp_path, compression, name):
        (tmp_path / (name + compression)).write_bytes(b"")
        with pytest.raises(DataError, match=rf"{name}\{compression}: 0 bytes, no {COMPRESSIONS[compression]} file"):
            read_texts(tmp_path)

    def test_several_streams_in_a_row_are_one(self, tmp_path, compression):
        assert read_texts(self.write(tmp_path / f"a.jsonl{compression}", compression, times=3)) == TEXTS * 60

    def test_a_compressed_file_without_content_has_no_documents(self, tmp_path, compression):
        (tmp_path / f"a.jsonl{compression}").write_bytes(COMPRESS[compression](b""))
        assert read_texts(tmp_path) == []


@pytest.mark.parametrize(
    "name, kind",
    [
        ("a.json.gz", ("json", ".gz")),
        ("A.NDJSON.BZ2", ("json", ".bz2")),
        ("a.b.csv", ("table", "")),
        ("a.gz", ("text", ".gz")),
        (".gz", ("text", "")),
        ("json", ("text", "")),
        ("a.tar.gz", ("archive", ".gz")),
    ],
)
def test_a_name_says_format_and_compression(name, kind):
    assert kind_of(name) == kind
