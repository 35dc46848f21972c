"""Which checkpoint is resumed from: the pointer's, else the newest complete one, never a damaged one, never nothing."""

import dataclasses
import errno
import json

import pytest

from card_scale.checkpoint import directory as directories
from card_scale.checkpoint import format as checkpoint_format
from card_scale.checkpoint.format import CheckpointManifest, StoredFile, StoredPiece, StoredTensor
from card_scale.errors import CheckpointError


def write(root, step: int, *, publish: bool = True):
    """Write a complete checkpoint of one tensor in two pieces; return its directory."""
    temporary = root / directories.temporary_name(step)
    (temporary / "model").mkdir(parents=True)
    (temporary / "model/tp00.safetensors").write_bytes(b"x" * 100)
    manifest = CheckpointManifest(
        step,
        ["weight"],
        "tensor 1 x pipeline 1 x data 1",
        "fsdp2",
        "tokenizer",
        "data",
        {},
        {"embedding.weight": StoredTensor([8, 2], 0, [StoredPiece("b", 4, 8), StoredPiece("a", 0, 4)])},
        {"model/tp00.safetensors": StoredFile(100, "hash")},
    )
    (temporary / checkpoint_format.MANIFEST_NAME).write_text(manifest.to_json())
    return directories.publish(temporary, step) if publish else temporary


def latest_step(root) -> int:
    return directories.find_latest(root)[1].step


def test_no_checkpoint_at_all(tmp_path):
    assert directories.find_latest(tmp_path) is None
    assert directories.find_latest(tmp_path / "missing") is None


def test_the_manifest_comes_back_as_it_was(tmp_path):
    path = write(tmp_path, 7)
    manifest = checkpoint_format.read_manifest(path)
    assert manifest.step == 7
    assert manifest.tensors["embedding.weight"].pieces[1] == StoredPiece("a", 0, 4)
    written = json.loads(manifest.to_json())
    assert len(written.pop("sha256")) == 64
    assert written == dataclasses.asdict(manifest)


def test_what_the_pointer_cannot_name_is_not_published(tmp_path, monkeypatch):
    write(tmp_path, 10)
    temporary = write(tmp_path, 20, publish=False)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(directories, "write_atomically", full)
        with pytest.raises(OSError, match="No space"):
            directories.publish(temporary, 20)
    assert directories.published_steps(tmp_path) == [10]
    assert directories.publish(temporary, 20).name == "iter_0000020"


def test_the_pointer_decides(tmp_path):
    for step in (10, 20):
        write(tmp_path, step)
    assert (tmp_path / directories.POINTER).read_text() == "20\n"
    assert latest_step(tmp_path) == 20
    (tmp_path / directories.POINTER).write_text("10\n")
    assert latest_step(tmp_path) == 10


@pytest.mark.parametrize("pointer", ["", "garbage", "30\n", "-1", "99999999999999999999"])
def test_a_pointer_that_leads_nowhere_is_passed_over(tmp_path, pointer):
    for step in (10, 20):
        write(tmp_path, step)
    (tmp_path / directories.POINTER).write_text(pointer)
    assert latest_step(tmp_path) == 20


def test_a_checkpoint_that_was_never_published_is_ignored(tmp_path):
    write(tmp_path, 10)
    write(tmp_path, 20, publish=False)
    assert latest_step(tmp_path) == 10


def damage_file(path):
    (path / "model/tp00.safetensors").write_bytes(b"x" * 99)


def lengthen_file(path):
    with (path / "model/tp00.safetensors").open("ab") as file:
        file.write(b"more")


def remove_file(path):
    (path / "model/tp00.safetensors").unlink()


def remove_manifest(path):
    (path / checkpoint_format.MANIFEST_NAME).unlink()


def halve_manifest(path):
    text = (path / checkpoint_format.MANIFEST_NAME).read_text()
    (path / checkpoint_format.MANIFEST_NAME).write_text(text[: len(text) // 2])


def change_manifest(**changes):
    def change(path):
        content = json.loads((path / checkpoint_format.MANIFEST_NAME).read_text()) | changes
        del content["sha256"]  # as whoever writes such a manifest would
        (path / checkpoint_format.MANIFEST_NAME).write_text(json.dumps(content))

    return change


DAMAGES = {
    "short file": (damage_file, "99 bytes"),
    "long file": (lengthen_file, "the manifest says 100"),
    "missing file": (remove_file, "is missing"),
    "missing manifest": (remove_manifest, "never completed"),
    "half a manifest": (halve_manifest, "damaged"),
    "another format": (change_manifest(format=99), "99"),
    "another step": (change_manifest(step=5), "step 5"),
    "a missing field": (change_manifest(files=None), "field"),
    "a gap": (
        change_manifest(
            tensors={"w": {"shape": [8], "dimension": 0, "pieces": [{"file": "a", "start": 0, "stop": 7}]}}
        ),
        "not stored completely",
    ),
    "an overlap": (
        change_manifest(
            tensors={
                "w": {
                    "shape": [8],
                    "dimension": 0,
                    "pieces": [{"file": "a", "start": 0, "stop": 5}, {"file": "b", "start": 4, "stop": 8}],
                }
            }
        ),
        "not stored completely",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_falls_back_loudly_and_never_to_nothing(tmp_path, damage):
    action, words = DAMAGES[damage]
    write(tmp_path, 10)
    action(write(tmp_path, 20))
    path, manifest, problems = directories.find_latest(tmp_path)
    assert (path.name, manifest.step) == ("iter_0000010", 10)
    assert words in problems[0]
    action(path)
    with pytest.raises(CheckpointError, match="no complete checkpoint is left"):
        directories.find_latest(tmp_path)


def test_saving_a_refused_step_again_puts_the_old_directory_aside(tmp_path):
    damage_file(write(tmp_path, 10))
    write(tmp_path, 10)
    assert latest_step(tmp_path) == 10
    assert directories.leftovers(tmp_path, 10) == list(tmp_path.glob("iter_0000010.replaced-*")) != []
