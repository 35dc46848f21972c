"""Every file of a checkpoint, damaged in every way: no damage loads, and the checkpoint before it is found."""

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from card_scale.checkpoint import directory as directories
from card_scale.checkpoint import verify
from card_scale.checkpoint.format import StoredFile, StoredPiece, read_manifest
from card_scale.errors import CheckpointError
from card_scale.training.agreement import agree_on_resume_point
from tests.checkpoint.handmade import publish
from tests.layouts.processes import run_ranks

CUTS = {"w": (0, [StoredPiece("a", 0, 4), StoredPiece("b", 4, 8)])}


def save(root: Path, step: int) -> Path:
    states = {key: {"w": torch.full((8, 2), float(step))} for key in ("weight", "exp_avg")}
    return publish(root, step, states, CUTS)


def flip(place: float):
    def change(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(place * (len(content) - 1))] ^= 1
        path.write_bytes(content)

    return change


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "first bit": flip(0.0),
    "middle bit": flip(0.5),
    "last bit": flip(1.0),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "gone": Path.unlink,
}


def outcomes(roots: list[Path]) -> list[tuple[int, list[str]] | str]:
    """Of each directory the step that two ranks agree to go on from and what they passed over, or their error."""
    found = []
    for root in roots:
        try:
            point = agree_on_resume_point(root)
            found.append((point.manifest.step, point.passed_over) if point else "nothing")
        except CheckpointError as error:
            found.append(str(error))
    return found


def test_no_damage_loads(tmp_path):
    """Of two checkpoints the newer one is damaged, and the only one of a second run."""
    pattern = tmp_path / "pattern"
    newer = [save(pattern, 10), save(pattern, 20)][-1]
    names = sorted(str(path.relative_to(newer)) for path in newer.rglob("*") if path.is_file())
    assert names == [
        "config.yaml",
        "manifest.json",
        *(f"{folder}/{stem}.safetensors" for folder in ("model", "optimizer") for stem in "ab"),
        "state.json",
        "tokenizer.model",
    ]
    cases = [(name, damage) for name in names for damage in DAMAGES]
    roots = []
    for number, (name, damage) in enumerate(cases):
        for kind in ("pair", "single"):
            root = shutil.copytree(pattern, tmp_path / f"{number}-{kind}")
            if kind == "single":
                shutil.rmtree(root / "iter_0000010")
            DAMAGES[damage](root / "iter_0000020" / name)
            roots.append(root)
    results = run_ranks(outcomes, 2, roots, deadline=120)
    assert results[0] == results[1]
    for (name, damage), pair, single in zip(cases, results[0][::2], results[0][1::2], strict=True):
        step, passed_over = pair
        assert (step, len(passed_over)) == (10, 1), (name, damage, pair)
        assert name in passed_over[0], (name, damage, pair)
        assert single.startswith("no complete checkpoint is left:"), (name, damage, single)
        assert name in single


POINTERS = {
    "garbage": lambda path: path.write_bytes(b"\xff\x00garbage"),
    "empty": lambda path: path.write_bytes(b""),
    "gone": Path.unlink,
    "a step that is not there": lambda path: path.write_text("30\n"),
}


def test_a_damaged_pointer_points_to_the_newest(tmp_path):
    roots = []
    for number, change in enumerate(POINTERS.values()):
        root = tmp_path / str(number)
        for step in (10, 20):
            save(root, step)
        change(root / directories.POINTER)
        roots.append(root)
    found = run_ranks(outcomes, 1, [*roots, tmp_path / "none"])[0]
    assert [outcome[0] for outcome in found[:-1]] == [20] * len(POINTERS)
    assert [len(outcome[1]) for outcome in found[:-1]] == [0, 0, 0, 1]
    assert found[-1] == "nothing"


def test_what_is_damaged_is_said_by_file(tmp_path):
    checkpoint = save(tmp_path, 10)
    files = read_manifest(checkpoint).files
    assert verify.damaged_files(checkpoint, files) == []
    flip(0.9)(checkpoint / "model/b.safetensors")
    (problem,) = verify.damaged_files(checkpoint, files)
    assert problem.startswith(f"checkpoint {checkpoint}: file model/b.safetensors is damaged: its SHA-256 is ")
    (checkpoint / "state.json").unlink()
    assert len(verify.damaged_files(checkpoint, files)) == 2
    assert "state.json cannot be read: No such file" in " ".join(verify.damaged_files(checkpoint, files))


def test_a_manifest_that_cannot_be_read_is_that_of_a_damaged_checkpoint(tmp_path):
    manifest = save(tmp_path, 10) / "manifest.json"
    manifest.unlink()
    manifest.mkdir()
    with pytest.raises(CheckpointError, match=r"manifest\.json cannot be read: .*Is a directory"):
        read_manifest(manifest.parent)


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 99)), st.integers(1, 5))
def test_readers_share_all_files(sizes, count):
    files = {name: StoredFile(size, "") for name, size in sizes.items()}
    shares = [verify.share(files, index, count) for index in range(count)]
    assert sorted(name for mine in shares for name in mine) == sorted(files)
    held = [sum(sizes[name] for name in mine) for mine in shares]
    assert max(held) - min(held) <= max(sizes.values(), default=0)


def test_manifests_of_the_first_version_have_no_hash_of_their_own():
    old = Path(__file__).parent / "data/iter_0000002"
    assert '"sha256": "' in (old / "manifest.json").read_text()
    assert read_manifest(old).step == 2
