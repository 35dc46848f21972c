"""What the command lines of the tools take."""

import argparse
import os

import pytest

from card_scale.argument_types import output_file


def test_a_file_to_write(tmp_path):
    assert output_file(str(tmp_path / "new.json")) == tmp_path / "new.json"
    (tmp_path / "old.json").write_text("{}")
    (tmp_path / "link.json").symlink_to("old.json")
    assert output_file(str(tmp_path / "old.json")) == tmp_path / "old.json"
    assert output_file(str(tmp_path / "link.json")) == tmp_path / "old.json", "the link stays one"


@pytest.mark.parametrize(
    "name, message",
    [
        (".", "is a directory, not a file"),
        ("missing/new.json", "there is no directory .*missing"),
        ("pipe", "is a device or a pipe; valid is a file"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_computed(tmp_path, name, message):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        output_file(str(tmp_path / name))
    with pytest.raises(argparse.ArgumentTypeError, match="/dev/null is a device"):
        output_file("/dev/null")


def test_a_directory_that_must_not_be_written_in(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, _mode: path != tmp_path)  # root may write anywhere
    with pytest.raises(argparse.ArgumentTypeError, match=f"the directory {tmp_path} must not be written in"):
        output_file(str(tmp_path / "new.json"))
