"""The phases of a save: a snapshot stays as it is, writing is local, and a commit publishes last."""

import contextlib
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from card_scale.checkpoint import commit as commits
from card_scale.checkpoint import directory as directories
from card_scale.checkpoint.commit import Publication, begin, commit, form_commit_group
from card_scale.checkpoint.format import StoredFile, StoredPiece
from card_scale.checkpoint.reader import CheckpointReader
from card_scale.checkpoint.retention import Retention
from card_scale.checkpoint.snapshot import pieces_of, plan_of
from card_scale.checkpoint.write import write
from card_scale.errors import CheckpointError
from card_scale.training.train_step import TrainStep
from tests.checkpoint import handmade
from tests.layouts.processes import run_ranks
from tests.layouts.trajectory import engine_of, form_groups, rank_batch, small_config

WEIGHT = torch.arange(8.0).view(4, 2)


def entries_around_an_update(parallel):
    """Take a snapshot before and after an update; return its plan, what the first held then and later, the second."""
    config = small_config(parallel=parallel, optimizer=dict(ema=0.9))
    form_groups(config)
    engine = engine_of(config)
    update = TrainStep(engine, config.objective, config)
    update(rank_batch(config, 0), config.optimizer.lr)
    taken = list(pieces_of(engine))
    at_once = [piece._replace(tensor=piece.tensor.clone()) for piece in taken]
    update(rank_batch(config, 1), config.optimizer.lr)
    return plan_of(engine, 1).shapes, at_once, taken, list(pieces_of(engine))


@pytest.mark.parametrize(
    "ranks, parallel", [(1, dict(zero=0)), (1, dict(engine="fsdp2")), (2, dict(zero=1)), (2, dict(zero=3))]
)
def test_a_snapshot_is_independent_of_the_engine(ranks, parallel):
    for shapes, at_once, later, after in run_ranks(entries_around_an_update, ranks, parallel):
        assert shapes.keys() == {"model", "optimizer"} == {piece.folder for piece in at_once}
        for folder, entries in shapes.items():
            assert entries == {piece.entry: list(piece.tensor.shape) for piece in at_once if piece.folder == folder}
        for first, unchanged, changed in zip(at_once, later, after, strict=True):
            assert first.entry == unchanged.entry == changed.entry
            assert first.tensor.dtype == torch.float32
            assert torch.equal(first.tensor, unchanged.tensor), first.entry
            assert not torch.equal(first.tensor, changed.tensor), first.entry


WRITE = """
import json, sys
from pathlib import Path
import torch
import torch.distributed as dist
from card_scale.checkpoint.write import Piece, Plan, write
plan = Plan(1, "tp00", {"model": {"weight/w[0:4]": [4, 2]}, "optimizer": {}}, {})
share = write(plan, iter([Piece("model", "weight/w[0:4]", torch.arange(8.0).view(4, 2))]), Path(sys.argv[1]))
assert not dist.is_initialized()
print(json.dumps({name: [file.bytes, file.sha256] for name, file in share.files.items()}))
"""


def test_writing_needs_no_process_group(tmp_path):
    done = subprocess.run([sys.executable, "-c", WRITE, tmp_path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    files = json.loads(done.stdout.splitlines()[-1])
    assert sorted(files) == ["model/tp00.safetensors", "optimizer/tp00.safetensors"]
    for name, (size, sha256) in files.items():
        assert StoredFile.synced(tmp_path / name) == StoredFile(size, sha256)
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()) == sorted(files)


def test_who_may_read_the_tensors_is_left_to_the_umask(tmp_path):
    ((plan, pieces),) = handmade.snapshots({"weight": {"w": WEIGHT}}, {"w": (0, [StoredPiece("a", 0, 4)])})
    write(plan, iter(pieces), tmp_path)
    (tmp_path / "other").touch()
    assert (tmp_path / "model/a.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


@contextlib.contextmanager
def files_of_at_most(size: int):
    """A disk that is full: the system refuses to write further into any file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def in_the_way(root: Path) -> contextlib.AbstractContextManager:
    (root / "model").touch()
    return contextlib.nullcontext()


@pytest.mark.parametrize("obstacle", [in_the_way, lambda _: files_of_at_most(50)])
def test_what_cannot_be_written_is_named_in_one_line(tmp_path, obstacle):
    ((plan, pieces),) = handmade.snapshots({"weight": {"w": WEIGHT}}, {"w": (0, [StoredPiece("a", 0, 4)])})
    awaited = iter(pieces)
    with obstacle(tmp_path), pytest.raises(CheckpointError) as caught:
        write(plan, awaited, tmp_path)
    assert list(awaited) == [], "another rank would wait for this one to gather it"
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"checkpoint {tmp_path}/model/a.safetensors cannot be saved: ")


def save(root: Path, step: int, group: dist.ProcessGroup, retention: Retention, rows: int = 4) -> Path:
    """Save one tensor, of which each of two ranks writes a half (of ``rows`` in all); a single rank writes both."""
    pieces = [StoredPiece("rank0", 0, 2), StoredPiece("rank1" if dist.get_world_size() == 2 else "rank0", 2, rows)]
    plan, mine = handmade.snapshots({"weight": {"w": WEIGHT + step}}, {"w": (0, pieces)})[dist.get_rank()]
    temporary = begin(root, step, group)
    publication = Publication(handmade.description(step, ["weight"]), handmade.run_files(step), retention)
    return commit(write(plan, iter(mine), temporary), temporary, publication, group)


def save_some(root: Path, steps: list[int], retention: Retention) -> list[str]:
    group = form_commit_group(60)
    return [save(root, step, group, retention).name for step in steps]


def test_commits_gather_what_all_ranks_wrote_and_prune(tmp_path):
    root = tmp_path / "checkpoints"
    (root / directories.temporary_name(3) / "model").mkdir(parents=True)
    steps = list(range(1, 8))
    for published in run_ranks(save_some, 2, root, steps, Retention(keep_last=2, keep_every=3)):
        assert published == [directories.name_of(step) for step in steps]
    assert sorted(path.name for path in root.glob("iter_*")) == [directories.name_of(step) for step in (3, 6, 7)]
    assert (root / directories.POINTER).read_text() == "7\n"
    for step in (3, 6, 7):
        with CheckpointReader(root / directories.name_of(step)) as reader:
            assert reader.state == {"step": step}
            assert torch.equal(reader.read("w"), WEIGHT + step)
            assert reader.manifest.tensors["w"].pieces == [StoredPiece("rank0", 0, 2), StoredPiece("rank1", 2, 4)]


def fail(*_arguments, **_keywords):
    raise OSError("the disk is gone")


def save_and_fail(root: Path, stage: str) -> None:
    """Save 10 and 20, then 30 with a failure at a stage of the commit."""
    group, retention = form_commit_group(60), Retention(keep_last=2)
    for step in (10, 20):
        save(root, step, group, retention)
    if stage == "manifest":
        commits.write_atomically = fail
    elif stage == "name":
        Path.rename = fail
    else:
        directories.write_atomically = fail
    save(root, 30, group, retention)


@pytest.mark.parametrize("stage", ["manifest", "name", "pointer"])
def test_a_failure_at_each_stage_of_a_commit_is_one_of_all_ranks(tmp_path, stage):
    root = tmp_path / "checkpoints"
    for error in run_ranks(save_and_fail, 2, root, stage, expect_failure=True):
        assert error.splitlines()[-1].startswith(f"card_scale.errors.CheckpointError: checkpoint {root}")
        assert error.splitlines()[-1].endswith("cannot be saved: the disk is gone")
    assert directories.published_steps(root) == [20, 10]
    assert list(root.glob("*.tmp-*")) == []
    assert (root / directories.POINTER).read_text() == "20\n"
    assert directories.find_latest(root)[1].step == 20


def save_with_a_gap(root: Path) -> str:
    group = form_commit_group(60)
    save(root, 10, group, Retention())
    with pytest.raises(CheckpointError) as caught:
        save(root, 20, group, Retention(), rows=3)
    return str(caught.value)


def test_what_was_not_written_completely_is_not_published(tmp_path):
    root = tmp_path / "checkpoints"
    (message,) = run_ranks(save_with_a_gap, 1, root)
    assert "tensor w is not stored completely" in message
    assert directories.published_steps(root) == [10]
    assert directories.find_latest(root)[1].step == 10
