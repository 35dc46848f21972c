"""Small files that are written whole or not at all."""

import errno
import os

import pytest

from card_scale import files


@pytest.mark.parametrize("write", [files.write_atomically, files.replace])
def test_the_old_content_or_all_of_the_new(tmp_path, write):
    path = tmp_path / "small.json"
    for content in (b"one", b"the other"):
        write(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_json_has_no_numbers_that_are_none(tmp_path):
    path = tmp_path / "small.json"
    files.write_json(path, {"loss": 1.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, {"loss": float("nan")})
    assert files.read_json(path) == {"loss": 1.5}


def test_a_full_disk_is_of_a_file(tmp_path, monkeypatch):
    def refuse(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "small.json"
    path.write_bytes(b"one")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        files.write_atomically(path, b"the other")
    assert path.read_bytes() == b"one"


def test_an_error_that_names_a_file_keeps_its_name(tmp_path):
    missing = tmp_path / "missing" / "small.json"
    with pytest.raises(FileNotFoundError, match=r"missing/small\.json\.partial"):
        files.replace(missing, b"")
