import io
import json

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from card_scale.corpus.formats import json_text
from card_scale.errors import DataError
from tests.corpus.reading import COMPRESS, read_documents, read_texts

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('"\\{}[]a', max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(st.dictionaries(st.text(max_size=3), json_values, max_size=3), max_size=5),
    st.sampled_from([None, 1]),
    st.booleans(),
    st.booleans(),
    st.integers(1, 40),
)
def test_objects_are_found_wherever_the_blocks_end(values, indent, as_array, escaped, block):
    if as_array:
        content = json.dumps(values, indent=indent, ensure_ascii=escaped)
    else:
        content = "\n ".join(json.dumps(value, indent=indent, ensure_ascii=escaped) for value in values)

    class InBlocks(io.BytesIO):
        def read(self, _size=-1):
            return super().read(block)

    found = [json.loads(element) for element in json_text._objects(InBlocks(content.encode()), "x")]
    assert found == values


@pytest.mark.parametrize(
    "content, message",
    [
        (b"[", "element 0: not valid JSON .the file ends inside an array"),
        (b'[{"text": "a"}', "element 1: not valid JSON .expected ',' or ']'"),
        (b'[{"text": "a"},', "element 1: not valid JSON .the file ends inside an array"),
        (b'[{"text": "a"} {"text": "a"}]', "element 1: not valid JSON .expected ',' or ']'"),
        (b'[{"text": "a"}] []', "element 1: not valid JSON .more stands after the array"),
        (b'[{"text": "a"}, {"text": "b"', "element 1: not valid JSON .the file ends inside an object"),
        (b'[{"text": "a"}, {"text": "b\\', "element 1: not valid JSON .the file ends inside an object"),
        (b'[{"text": "a"}, {"text" "b"}]', "element 1: not valid JSON .Expecting"),
        (b'[{"text": "a"}, "b"]', "element 1: no JSON object"),
        (b'[{"body": "a"}]', "element 0: no key 'text', the object has 'body'; name the key with --text-key"),
        (b'[{"text": 1}]', "element 0: 'text' is int, expected a string"),
        (b'[{"text": null}]', "element 0: 'text' is null; .* --skip-invalid"),
        (b'[{"text": "\xff"}]', r"element 0: not valid UTF-8 \(byte 0xff at 10\)"),
        (b'[{"text": "\\ud800"}]', "element 0: a lone surrogate"),
        (b'{\n"text": "a"\n}\nrest', "element 1: no JSON object"),
        (b'{\n"name": "a"\n}\n', "element 0: no key 'text'"),
        (b'{"text":\n', "element 0: not valid JSON .the file ends inside an object"),
    ],
)
def test_what_is_wrong_is_named_by_its_element(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.json: " + message):
        read_texts(tmp_path)


def test_nulls_and_invalid_elements_are_left_out_by_choice(tmp_path):
    (tmp_path / "a.json").write_bytes(b'[{"text": null}, {"text": "a"}, {"text": "\xff"}, {"text": "\\ud800"}]')
    found = read_documents(tmp_path, skip_invalid=True)
    assert [(document.text, document.left_out) for document in found] == [
        (b"", "null_skipped"),
        (b"a", None),
        (b"", "invalid_skipped"),
        (b"", "invalid_skipped"),
    ]


@pytest.mark.parametrize("content", [b"", b" \n", b"[]", b" [ ]\n"])
@pytest.mark.parametrize("compression", COMPRESS)
def test_nothing_is_no_document(tmp_path, content, compression):
    (tmp_path / f"a.json{compression}").write_bytes(COMPRESS[compression](content))
    assert read_texts(tmp_path) == []


@pytest.mark.parametrize("compression", COMPRESS)
def test_an_array_on_one_line_is_read_once_and_in_blocks(tmp_path, monkeypatch, compression):
    """What is kept in memory is an object and a block, so time is linear in the file, however long its line."""
    texts = [f"{number} " + '\\n"{' * 1000 for number in range(60)]
    (tmp_path / f"a.json{compression}").write_bytes(COMPRESS[compression](json.dumps(
        [{"text": text} for text in texts]).encode()))  # fmt: skip
    largest = 0
    refill = json_text._Window._refill

    def watched(window):
        nonlocal largest
        done = refill(window)
        largest = max(largest, len(window._data))
        return done

    monkeypatch.setattr(json_text._Window, "_refill", watched)
    monkeypatch.setattr(json_text, "BLOCK", 1000)
    assert read_texts(tmp_path) == texts
    assert largest < 2 * len(json.dumps(texts[0])) + 1000


def frames(*parts: bytes) -> bytes:
    return b"".join(zstandard.ZstdCompressor().compress(part) for part in parts)


@pytest.mark.parametrize(
    "parts",
    [
        (b"{", b'\n"text": "a"\n}\n{"text":\n"b"}'),
        (b"\n\n", b'[{"text": "a"}, {"text": "b"}]'),
        (b"", b"\xef\xbb", b"\xbf", b'[{"text": "a"},\n{"text": "b"}]'),
        (b'{"te', b'xt": "a"}\n{"text": "b"}\n'),
    ],
)
def test_what_a_file_holds_is_told_over_the_ends_of_frames(tmp_path, parts):
    (tmp_path / "a.json.zst").write_bytes(frames(*parts))
    assert read_texts(tmp_path) == ["a", "b"]


def test_a_line_that_spans_many_ranges_is_read_once(tmp_path, monkeypatch):
    texts = ["a", "b" * 100_000, "c", "d"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    read = 0

    class Counted(io.BufferedReader):
        def readline(self, size=-1):
            nonlocal read
            line = super().readline(size)
            read += len(line)
            return line

    monkeypatch.setattr(json_text, "open", lambda path, _mode: Counted(io.FileIO(path)), raising=False)
    documents = read_documents(tmp_path, size=2000)
    assert [document.text.decode() for document in documents] == texts
    assert 100_000 < read < 250_000


@given(st.lists(st.integers(0, 40), max_size=6), st.integers(1, 60), st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_every_line_is_read_by_the_range_it_starts_in(tmp_path_factory, lengths, size, block):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    texts = [str(number) * length for number, length in enumerate(lengths)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts) + '{"text": "last"}')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_text, "BLOCK", block)
        assert [document.text.decode() for document in read_documents(path, size=size)] == [*texts, "last"]


def test_records_are_numbered_by_byte_line_or_element(tmp_path):
    lines = b'{"text": "a"}\n\n{"text": "b"}\n'
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(COMPRESS[".gz"](lines))
    (tmp_path / "c.json").write_bytes(b'[{"text": "a"}, {"text": "b"}]')
    assert [document.record for document in read_documents(tmp_path)] == [0, 15, 1, 3, 0, 1]
