"""metrics.jsonl through resumes and kills."""

import errno
import json
import math
import resource

import pytest

from card_scale.errors import DataError
from card_scale.faults import VARIABLE
from card_scale.training.records import MetricsFile, read_metrics


def steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def write(path, numbers, resume_step=None):
    file = MetricsFile(path, resume_step)
    for number in numbers:
        file.write({"step": number, "loss": 1.5})
    file.close()


def test_a_line_is_on_disk_before_the_next(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.write({"step": 1, "loss": 2.0, "bound": True})
    assert json.loads(path.read_text()) == {"step": 1, "loss": 2.0, "bound": True}
    file.close()


def test_resume_drops_later_steps_and_keeps_the_rest_byte_for_byte(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [0, 1, 2, 2, 3, 4])
    before = path.read_bytes().splitlines(keepends=True)
    write(path, [3, 4, 5], resume_step=2)
    assert steps(path) == [0, 1, 2, 2, 3, 4, 5]
    assert path.read_bytes().splitlines(keepends=True)[:4] == before[:4]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_resume_at_the_end_leaves_the_file_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2])
    inode = path.stat().st_ino
    write(path, [3], resume_step=2)
    assert path.stat().st_ino == inode
    assert steps(path) == [1, 2, 3]


def test_a_new_run_starts_with_an_empty_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [0, 1])
    write(path, [0])
    assert steps(path) == [0]


@pytest.mark.parametrize("cut", range(1, 25))
def test_a_kill_in_the_middle_of_a_line(tmp_path, cut):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2])
    path.write_bytes(path.read_bytes()[:-cut])
    write(path, [2, 3], resume_step=1)
    assert steps(path) == [1, 2, 3]


def test_a_line_cut_after_its_last_brace_is_not_joined_with_the_next(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2])
    path.write_bytes(path.read_bytes()[:-1])
    write(path, [3], resume_step=2)
    assert steps(path) == [1, 3]


@pytest.mark.parametrize("damage", [b"\x00\x00\x00\n", b"[1]\n", b'{"loss": 1}\n', b"{\n"])
def test_damage_elsewhere_is_an_error_and_left_alone(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    content = b'{"step": 1}\n' + damage + b'{"step": 2}\n'
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2"):
        MetricsFile(path, resume_step=2)
    assert path.read_bytes() == content


def test_numbers_that_json_has_not_become_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.write({"step": 1, "loss": math.nan, "grad_norm": math.inf})
    file.close()
    assert json.loads(path.read_text()) == {"step": 1, "loss": None, "grad_norm": None}


def test_what_a_full_disk_refuses_is_written_later_and_no_line_is_half(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    assert file.write({"step": 1}) is None
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The disk takes a part of the next line.
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, before[1]))
    try:
        for step in (2, 3):
            refused = file.write({"step": step})
            assert refused is not None
            assert refused.errno == errno.EFBIG
            assert path.read_text() == '{"step": 1}\n'
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert file.write({"step": 4}) is None
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 3, 4]
    monkeypatch.setenv(VARIABLE, "rank=all,at=metrics,action=enospc,step=5")
    assert file.write({"step": 5}).errno == errno.ENOSPC
    file.close()
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 3, 4, 5]
