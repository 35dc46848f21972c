import gzip
import io
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from card_scale.corpus import units
from card_scale.corpus.build import BuildSettings, build_dataset
from card_scale.corpus.encoding import DocumentEncoder
from card_scale.corpus.kept_encodings import KeptEncoder
from card_scale.corpus.sources import InputSettings
from card_scale.data.sentencepiece_tokenizer import SentencepieceTokenizer
from card_scale.data.tokenizer import Tokenizer
from card_scale.errors import StopRequested
from tests.corpora import make_texts
from tests.corpus.test_build import contents

BATCHES = [[b"one", b"", b"two"], [b""], [], [b"return self" * 9], [b"last"]]


class Counted(DocumentEncoder):
    def __init__(self, tokenizer):
        super().__init__(tokenizer)
        self.calls = 0

    def encode(self, texts, report):
        self.calls += 1
        return super().encode(texts, report)


def encode(tokenizer, file, batches, identity="a"):
    """The ids of all batches, and how many of these were encoded."""
    file.seek(0)
    counted, told = Counted(tokenizer), []
    encoder = KeptEncoder(counted, identity, file)
    found = [[ids.tolist() for ids in encoder.encode(texts, told.append)] for texts in batches]
    assert found == [[tokenizer.encode(text) for text in texts] for texts in batches]
    assert sum(told) == sum(len(text) for texts in batches for text in texts)
    return counted.calls


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path):
    return Tokenizer.load(tokenizer_path)


def test_what_is_kept_is_not_encoded_again(tokenizer):
    file = io.BytesIO()
    assert encode(tokenizer, file, BATCHES[:2]) == 2
    assert encode(tokenizer, file, BATCHES) == 3
    assert encode(tokenizer, file, BATCHES) == 0


def test_another_text_tokenizer_or_order_is_encoded(tokenizer):
    file = io.BytesIO()
    encode(tokenizer, file, BATCHES)
    assert encode(tokenizer, file, BATCHES, identity="b") == 5
    assert encode(tokenizer, file, [BATCHES[0], [b"other"], BATCHES[4]], identity="b") == 2
    assert encode(tokenizer, file, [[b"on", b"e", b"two"]], identity="b") == 1
    assert encode(tokenizer, file, [BATCHES[0]], identity="b") == 1


def test_damage_anywhere_only_costs_time(tokenizer):
    whole = io.BytesIO()
    encode(tokenizer, whole, BATCHES)
    content = whole.getvalue()
    for place in range(len(content)):
        encode(tokenizer, io.BytesIO(content[:place]), BATCHES)
        flipped = bytearray(content)
        flipped[place] ^= 0xFF
        encode(tokenizer, io.BytesIO(flipped), BATCHES)


@pytest.mark.parametrize(
    "name, kept",
    [
        ("a.txt", False),
        ("a.jsonl", False),
        ("a.parquet", False),
        ("a.txt.gz", True),
        ("a.jsonl.gz", True),
        ("a.json", True),
        ("a.csv", True),
    ],
)
def test_encodings_are_kept_of_files_that_cannot_be_entered(tmp_path, tokenizer_path, monkeypatch, name, kept):
    texts = ["one", "two"]
    path = tmp_path / name
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=1)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text({".json": json.dumps([{"text": "a"}]), ".csv": "text\na\n"}.get(path.suffix, lines))
    opened = []
    open_kept = units.open_kept
    monkeypatch.setattr(units, "open_kept", lambda path: opened.append(path) or open_kept(path))
    monkeypatch.setattr(units, "_KEPT_BYTES", 1)
    build_dataset(BuildSettings(InputSettings((str(path),)), 0.0), tokenizer_path, tmp_path / "data", 1)
    assert bool(opened) == kept


def test_a_stopped_unit_of_a_compressed_file_goes_on_where_it_was(tmp_path, tokenizer_path, monkeypatch):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in make_texts(60, seed=1))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    monkeypatch.setattr(units, "_KEPT_BYTES", 1)
    monkeypatch.setattr(units, "_BATCH_BYTES", 2000)
    settings = BuildSettings(InputSettings((str(tmp_path / "a.jsonl.gz"),)), 0.2)
    build_dataset(settings, tokenizer_path, tmp_path / "whole", 1)

    encoded: list[int] = []
    encode_batch = SentencepieceTokenizer.encode_batch

    def until_the_tenth(tokenizer, texts):
        encoded.append(len(texts))
        if len(encoded) == 10:
            raise KeyboardInterrupt
        return encode_batch(tokenizer, texts)

    monkeypatch.setattr(SentencepieceTokenizer, "encode_batch", until_the_tenth)
    with pytest.raises(StopRequested, match="0 of 1 units"):
        build_dataset(settings, tokenizer_path, tmp_path / "data", 1)
    build_dataset(settings, tokenizer_path, tmp_path / "data", 1)
    assert sum(encoded[:9]) + sum(encoded[10:]) == 60
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")
    assert np.all(np.array(encoded) < 60)
