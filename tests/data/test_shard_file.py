"""Reading a shard through errors that pass, and what is said of those that do not."""

import errno
import os
import types

import numpy as np
import pytest

from card_scale.data import shard_file
from card_scale.data.shard_file import DELAYS, ShardFile
from card_scale.data.shards import INDEX_DTYPE, ShardRecord
from card_scale.errors import DataError

CONTENT = bytes(range(200))
ROW = np.array([(0, 0, 50, 40)], dtype=INDEX_DTYPE)[0]


@pytest.fixture
def record(tmp_path) -> ShardRecord:
    (tmp_path / "shard.tar").write_bytes(CONTENT)
    return ShardRecord("shard.tar", len(CONTENT), "", 1, 40)


def with_pread(monkeypatch, pread) -> None:
    monkeypatch.setattr(shard_file, "os", types.SimpleNamespace(**{**vars(os), "pread": pread}))


def test_a_document_is_its_bytes(tmp_path, record, monkeypatch):
    file = ShardFile(tmp_path, record)
    assert file.document(ROW, 2).tolist() == list(CONTENT[50:130])
    assert file.document(ROW, 1).dtype == np.uint8
    # A call may give a part only.
    with_pread(monkeypatch, lambda descriptor, size, offset: os.pread(descriptor, min(size, 7), offset))
    assert file.document(ROW, 2).tolist() == list(CONTENT[50:130])


@pytest.mark.parametrize("failures", range(len(DELAYS) + 1))
def test_what_passes_is_waited_for(tmp_path, record, monkeypatch, failures):
    left, slept = [OSError(errno.EIO, "away")] * failures, []

    def doubtful(*arguments):
        if left:
            raise left.pop()
        return os.pread(*arguments)

    with_pread(monkeypatch, doubtful)
    assert ShardFile(tmp_path, record, sleep=slept.append).document(ROW, 2).tolist() == list(CONTENT[50:130])
    assert slept == list(DELAYS[:failures])


def test_a_shard_that_is_back_is_waited_for_again(tmp_path, record, monkeypatch):
    errors, slept = [OSError(errno.EIO, "away")] * (len(DELAYS) + 2), []

    def doubtful(*arguments):
        if errors:
            raise errors.pop()
        return os.pread(*arguments)

    with_pread(monkeypatch, doubtful)
    file = ShardFile(tmp_path, record, sleep=slept.append)
    for _ in range(2):
        with pytest.raises(DataError):  # the second time at once: it may be gone for good
            file.document(ROW, 2)
    assert slept == list(DELAYS)
    file.document(ROW, 2)
    errors.append(OSError(errno.EIO, "away"))
    file.document(ROW, 2)
    assert slept == [*DELAYS, DELAYS[0]]


@pytest.mark.parametrize(
    "number, attempts", [(errno.EIO, len(DELAYS) + 1), (errno.ESTALE, len(DELAYS) + 1), (errno.EACCES, 1)]
)
def test_what_does_not_pass_is_named_with_its_place(tmp_path, record, monkeypatch, number, attempts):
    tried = []

    def refuse(*arguments):
        tried.append(arguments)
        raise OSError(number, os.strerror(number))

    with_pread(monkeypatch, refuse)
    with pytest.raises(DataError, match=rf"shard\.tar: cannot be read at byte 50 \(.*{os.strerror(number)}"):
        ShardFile(tmp_path, record, sleep=lambda _: None).document(ROW, 2)
    assert len(tried) == attempts


def test_a_file_that_is_missing_or_changes_is_no_end_of_the_process(tmp_path, record):
    file = ShardFile(tmp_path, record)
    file.document(ROW, 2)
    os.truncate(tmp_path / "shard.tar", 60)
    # A mapping would end the process here (SIGBUS).
    with pytest.raises(DataError, match=r"shard\.tar: ends at byte 60; it changed while it was in use"):
        file.document(ROW, 2)
    with pytest.raises(DataError, match=r"shard\.tar: 60 bytes, expected 200"):
        ShardFile(tmp_path, record).document(ROW, 2)
    (tmp_path / "shard.tar").unlink()
    with pytest.raises(DataError, match=r"cannot be read at byte 50 .*No such file"):
        ShardFile(tmp_path, record, sleep=lambda _: None).document(ROW, 2)


def test_descriptors_are_given_back(tmp_path, record):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        ShardFile(tmp_path, record).document(ROW, 2)
    assert len(os.listdir("/proc/self/fd")) == before
