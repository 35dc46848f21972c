"""What is pruned: never the pointer's target, never the last sound checkpoint, and never half of one."""

import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from card_scale.checkpoint import directory as directories
from card_scale.checkpoint.format import StoredPiece
from card_scale.checkpoint.retention import Retention, prune, remove_unfinished, to_prune
from tests.checkpoint.handmade import publish

STEPS = st.sets(st.integers(0, 60), max_size=20)


@given(STEPS, st.none() | st.integers(0, 60), st.sampled_from([0, 2, 3, 7]), st.integers(0, 12))
def test_what_may_go(steps, pointer, keep_last, keep_every):
    gone = to_prune(steps, pointer, keep_last, keep_every)
    left = steps - set(gone)
    assert set(gone) <= steps
    assert gone == sorted(gone)
    assert pointer not in gone
    if keep_last == 0 or pointer not in steps:
        assert not gone
        return
    assert not [step for step in gone if step > pointer]
    assert not [step for step in gone if keep_every and step % keep_every == 0]
    before = sorted(step for step in steps if step <= pointer)
    assert set(before[-keep_last:]) <= left
    # Nothing else stays.
    for step in left - set(before[-keep_last:]):
        assert step > pointer or (keep_every and step % keep_every == 0)


@given(STEPS, st.integers(2, 4), st.integers(0, 12))
def test_pruning_again_changes_nothing(steps, keep_last, keep_every):
    pointer = max(steps, default=None)
    left = steps - set(to_prune(steps, pointer, keep_last, keep_every))
    assert to_prune(left, pointer, keep_last, keep_every) == []


def save(root, *steps: int) -> None:
    for step in steps:
        publish(root, step, {"weight": {"w": torch.full((4,), float(step))}}, {"w": (0, [StoredPiece("a", 0, 4)])})


def names(root) -> list[str]:
    return sorted(path.name for path in root.glob("iter_*"))


def test_what_was_never_published_goes_whatever_its_step(tmp_path):
    save(tmp_path, 10)
    for step in (5, 10, 20):
        (tmp_path / directories.temporary_name(step)).mkdir()
    kept = tmp_path / directories.pruned_name(10)  # a deletion that goes on where the next save prunes
    kept.mkdir()
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ["iter_0000010", kept.name]
    remove_unfinished(tmp_path / "nowhere")


def test_everything_is_kept_by_default(tmp_path):
    save(tmp_path, 10, 20, 30, 40)
    prune(tmp_path, Retention())
    assert directories.published_steps(tmp_path) == [40, 30, 20, 10]


def test_the_newest_and_the_multiples_stay(tmp_path):
    save(tmp_path, *range(10, 101, 10))
    prune(tmp_path, Retention(keep_last=2, keep_every=40))
    assert names(tmp_path) == ["iter_0000040", "iter_0000080", "iter_0000090", "iter_0000100"]
    assert directories.find_latest(tmp_path)[1].step == 100


def test_a_damaged_checkpoint_takes_no_sound_ones_place(tmp_path):
    save(tmp_path, 10, 20, 30, 40)
    (tmp_path / "iter_0000030/model/a.safetensors").unlink()
    prune(tmp_path, Retention(keep_last=2))
    assert directories.published_steps(tmp_path) == [40, 30, 20]
    (tmp_path / "iter_0000040/model/a.safetensors").unlink()
    assert directories.find_latest(tmp_path)[1].step == 20


def test_a_run_that_was_set_back_keeps_its_own(tmp_path):
    save(tmp_path, 50, 60, 10, 20, 30)  # the pointer names the last that was written
    prune(tmp_path, Retention(keep_last=2))
    assert directories.published_steps(tmp_path) == [60, 50, 30, 20]


def test_a_kill_while_a_checkpoint_is_deleted(tmp_path, monkeypatch):
    """What has begun to go is no checkpoint any more, and the next commit ends it."""
    save(tmp_path, 10, 20, 30)
    with monkeypatch.context() as patch:
        # Whatever goes first, the manifest is still there.
        patch.setattr(shutil, "rmtree", lambda path, **_: (path / "model/a.safetensors").unlink())
        prune(tmp_path, Retention(keep_last=2))
    assert directories.published_steps(tmp_path) == [30, 20]
    (half,) = tmp_path.glob("*.pruned-*")
    assert (half / "manifest.json").is_file()
    prune(tmp_path, Retention(keep_last=2))
    assert names(tmp_path) == ["iter_0000020", "iter_0000030"]


@pytest.mark.parametrize("retention", [Retention(), Retention(keep_last=2)])
def test_a_checkpoint_that_was_saved_again_goes_once_its_successor_is_there(tmp_path, retention):
    save(tmp_path, 10, 20)
    (tmp_path / "iter_0000020/model/a.safetensors").unlink()
    save(tmp_path, 20)
    assert len(names(tmp_path)) == 3
    prune(tmp_path, retention)
    assert names(tmp_path) == ["iter_0000010", "iter_0000020"]
    assert directories.find_latest(tmp_path)[1].step == 20


@pytest.mark.parametrize("retention", [Retention(), Retention(keep_last=2)])
def test_writes_of_killed_processes_go_unless_they_may_be_going_on(tmp_path, retention):
    save(tmp_path, 10, 20)
    older, same, newer = (directories.temporary_name(step) for step in (10, 20, 30))
    others = ["iter_0000010.replaced-by-hand", "iter_0000010.tmp-notes"]
    for name in (older, same, newer, *others):
        (tmp_path / name / "model").mkdir(parents=True)
    prune(tmp_path, retention)
    assert names(tmp_path) == sorted(["iter_0000010", "iter_0000020", newer, *others])
