"""A small corpus with known documents, its tokenizer and datasets, made once."""

import hashlib
import io
import random
from pathlib import Path

import numpy as np
import pytest

from card_scale.corpus.build import BuildSettings, build_dataset
from card_scale.corpus.sources import InputSettings
from card_scale.corpus.tokenizer_training import train_tokenizer
from card_scale.data.manifest import FileRecord, Manifest, Split, index_name
from card_scale.data.shards import INDEX_DTYPE, ShardWriter
from card_scale.data.tokenizer import EOS_ID, SPECIAL_IDS, Tokenizer

TOKENIZER_NAME = "tokenizer.model"

WORDS = [
    "def",
    "return",
    "self",
    "import",
    "class",
    "for",
    "while",
    "print",
    "value",
    "index",
    "token",
    "mask",
    "noise",
]
ADVERSARIAL = "[MASK] <s> </s> <pad> <unk> <0x41> \u2047 [MASK][MASK] < s >"
OPENINGS = ["", ADVERSARIAL, "漢字 🧿 e\u0301"]


def make_texts(count: int, seed: int) -> list[str]:
    """Documents of 1 to 400 words with line breaks, indentation, digits and characters outside any vocabulary."""
    generator = random.Random(seed)
    texts = []
    for number in range(count):
        words = [generator.choice(WORDS) for _ in range(generator.choice([1, 5, 40, 400]))]
        lines = ["    " * generator.randrange(3) + " ".join(words[i : i + 8]) for i in range(0, len(words), 8)]
        texts.append(f"# {number} {generator.choice(OPENINGS)}\n" + "\n".join(lines))
    return texts


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """The corpus: document i is file ``NNN.txt``."""
    return make_texts(80, seed=1)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    directory = tmp_path_factory.mktemp("corpus")
    for number, text in enumerate(texts):
        (directory / f"{number:03d}.txt").write_bytes(text.encode())
    return directory


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(train_tokenizer(texts, 400))
    return path


@pytest.fixture(scope="session")
def settings(corpus: Path) -> BuildSettings:
    """Several units, and several shards in some of them."""
    return BuildSettings(InputSettings((str(corpus),)), validation_fraction=0.25, unit_bytes=8_000, shard_bytes=15_000)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory, settings: BuildSettings, tokenizer_path: Path) -> Path:
    """A finished dataset; tests must not write into it."""
    directory = tmp_path_factory.mktemp("dataset") / "data"
    build_dataset(settings, tokenizer_path, directory, workers=1)
    return directory


def write_dataset(directory: Path, tokenizer_path: Path, shard_documents: int, **splits: list[list[int]]) -> Path:
    """A dataset of given documents, token ids without EOS, with so many of them in a shard."""
    directory.mkdir()
    (directory / TOKENIZER_NAME).write_bytes(tokenizer_path.read_bytes())
    records = {}
    for name in ("train", "validation"):
        documents, shards, rows = splits.get(name, []), [], [np.zeros(0, dtype=INDEX_DTYPE)]
        for begin in range(0, len(documents), shard_documents):
            with ShardWriter(directory / f"{name}-000000-{len(shards):03d}.tar") as writer:
                for number, ids in enumerate(documents[begin : begin + shard_documents], start=begin):
                    writer.add(f"000000-{number:09d}", b"{}", np.array([*ids, EOS_ID], dtype="<u2"))
                record, index = writer.finish()
            index["shard"] = len(shards)
            shards.append(record)
            rows.append(index)
        content = io.BytesIO()
        np.save(content, np.concatenate(rows))
        (directory / index_name(name)).write_bytes(content.getvalue())
        digest = hashlib.sha256(content.getvalue()).hexdigest()
        tokens = sum(len(ids) + 1 for ids in documents)
        index_record = FileRecord(index_name(name), len(content.getvalue()), digest)
        records[name] = Split(len(documents), tokens, index_record, tuple(shards))
    model = FileRecord(TOKENIZER_NAME, tokenizer_path.stat().st_size, Tokenizer.load(tokenizer_path).sha256)
    counts = {"documents": 0, "text_bytes": 0, "empty_dropped": 0, "invalid_skipped": 0}
    Manifest(400, SPECIAL_IDS, model, "uint16", records, counts, (), {}).save(directory)
    return directory
