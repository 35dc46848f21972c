"""Text columns of parquet and Arrow files: every type that holds text, nulls, several groups, damage."""

import pyarrow
import pyarrow.parquet
import pytest

from card_scale.corpus.sources import InputSettings, scan
from card_scale.errors import DataError
from tests.corpus.reading import read_documents, read_texts

TEXTS = ["one", "", "zwei\nLinien\r\n", "漢字 🧿 [MASK]", "x" * 3000, "one"]
KINDS = [
    pyarrow.string(),
    pyarrow.large_string(),
    pyarrow.string_view(),
    pyarrow.binary(),
    pyarrow.large_binary(),
    pyarrow.binary_view(),
    pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    pyarrow.dictionary(pyarrow.int8(), pyarrow.large_string()),
]


def write_parquet(path, table):
    pyarrow.parquet.write_table(table, path, row_group_size=2)


def write_stream(path, table):
    with pyarrow.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def write_indexed(path, table):
    with pyarrow.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


WRITERS = {"a.parquet": write_parquet, "a.arrow": write_stream, "B.ARROW": write_indexed}


@pytest.fixture(params=WRITERS)
def write(request, tmp_path):
    """Return a function that writes a table in one of the formats and gives its path."""

    def written(table):
        WRITERS[request.param](tmp_path / request.param, table)
        return tmp_path / request.param

    return written


@pytest.mark.parametrize("size", [None, 1, 700])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_rows_come_back_in_order(write, kind, size):
    path = write(pyarrow.table({"id": range(len(TEXTS)), "body": pyarrow.array(TEXTS).cast(kind)}))
    found = read_documents(path, text_key="body", size=size)
    assert [(document.record, document.text.decode()) for document in found] == list(enumerate(TEXTS))


@pytest.mark.parametrize("name, size", [("a.parquet", None), ("a.arrow", 1), ("B.ARROW", 1)])
def test_row_groups_and_batches_are_pieces(tmp_path, name, size):
    WRITERS[name](tmp_path / name, pyarrow.table({"text": TEXTS}))
    assert len({document.position for document in read_documents(tmp_path)}) > 1
    pieces = scan(InputSettings((str(tmp_path),))).pieces
    assert len(pieces) == (3 if size is None else 1)
    assert sum(piece.bytes for piece in pieces) > 0


@pytest.mark.parametrize("kind", [*KINDS, pyarrow.null()], ids=str)
def test_nulls_are_refused_or_counted(write, kind):
    texts = [None, None] if kind == pyarrow.null() else ["a", None, "", None]
    path = write(pyarrow.table({"text": pyarrow.array(texts).cast(kind)}))
    with pytest.raises(DataError, match=rf"row {texts.index(None)}: 'text' is null; .* --skip-invalid"):
        read_texts(path)
    assert read_texts(path, skip_invalid=True) == texts
    assert {document.left_out for document in read_documents(path, skip_invalid=True)} == (
        {"null_skipped"} if kind == pyarrow.null() else {"null_skipped", None}
    )


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.binary()], ids=str)
def test_what_is_no_utf8_is_named_by_row(write, kind):
    broken = pyarrow.Array.from_buffers(
        kind, 2, [None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"a\xff")]
    )
    path = write(pyarrow.table({"text": broken}))
    with pytest.raises(DataError, match=r"row 1: not valid UTF-8 \(byte 0xff at 0\)"):
        read_texts(path)
    assert read_texts(path, skip_invalid=True) == ["a", None]


def test_a_column_that_is_missing_or_double_or_no_text_is_named_before_anything_is_read(write):
    path = write(pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2 + [pyarrow.array([1])], ["body", "body", "n"]))
    for key, message in [
        ("text", "no column 'text', the file has 'body', 'body', 'n'; name the column with --text-key"),
        ("body", "2 columns are named 'body'"),
        ("n", "column 'n' holds int64, expected strings"),
    ]:
        with pytest.raises(DataError, match=rf"{path.name}: {message}"):
            scan(InputSettings((str(path),), text_key=key))


def test_a_file_without_rows_has_no_documents(write):
    path = write(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}))
    assert read_texts(path) == []


def test_a_file_that_is_cut_short_is_named(write):
    path = write(pyarrow.table({"text": TEXTS}))
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(DataError, match=rf"{path.name}: damaged"):
        read_texts(path)


def test_long_columns_come_in_many_batches(write):
    texts = [f"{number}" * (number % 7) for number in range(1500)]
    assert read_texts(write(pyarrow.table({"text": pyarrow.array(texts).dictionary_encode()}))) == texts


def test_a_saved_hugging_face_dataset_is_read_without_its_descriptions(tmp_path):
    for split, texts in {"train": TEXTS[:4], "test": TEXTS[4:]}.items():
        folder = tmp_path / "saved" / split
        folder.mkdir(parents=True)
        write_stream(folder / "data-00000-of-00001.arrow", pyarrow.table({"text": texts}))
        (folder / "dataset_info.json").write_text('{"features": {}}')
        (folder / "state.json").write_text('{"_data_files": []}')
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert read_texts(tmp_path / "saved") == TEXTS[4:] + TEXTS[:4]
    assert read_texts(tmp_path / "saved" / "train") == TEXTS[:4]
    found = scan(InputSettings((str(tmp_path),)))
    assert found.passed_over == {"descriptions of a Hugging Face dataset": 5}
    # The name alone is not enough.
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "state.json").write_text('{"text": "Ohio"}')
    assert read_texts(tmp_path / "own") == ["Ohio"]
