import dataclasses
import fcntl
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from card_scale.corpus.build import BuildSettings, build_dataset
from card_scale.corpus.sources import InputSettings
from card_scale.corpus.tokenizer_training import train_tokenizer
from card_scale.corpus.units import SplitWriter, split_of
from card_scale.corpus.verify import verify_dataset
from card_scale.data.manifest import Manifest, load_index
from card_scale.data.tokenizer import EOS_ID, Tokenizer
from card_scale.errors import DataError
from tests.corpora import make_texts

ROOT = Path(__file__).parents[2]


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def read_documents(directory: Path, split: str) -> list[list[int]]:
    """Every document of a split, read by tarfile and numpy: an oracle beside the index."""
    found = []
    for path in sorted(directory.glob(f"{split}-*.tar")):
        with tarfile.open(path) as archive:
            found += [
                np.load(io.BytesIO(archive.extractfile(member).read())).tolist()
                for member in archive
                if member.name.endswith(".npy")
            ]
    return found


def test_every_document_is_there_once_on_its_side(dataset, texts, tokenizer_path, settings):
    tokenizer = Tokenizer.load(tokenizer_path)
    manifest = Manifest.load(dataset)
    for split in ("train", "validation"):
        expected = [
            [*tokenizer.encode(text), EOS_ID]
            for text in texts
            if split_of(text.encode(), settings.validation_fraction) == split
        ]
        found = read_documents(dataset, split)
        assert found == expected  # units are numbered in the order of the inputs
        assert manifest.splits[split].documents == len(found)
        assert manifest.splits[split].tokens == sum(map(len, found))
        assert load_index(dataset, manifest.splits[split])["tokens"].tolist() == list(map(len, found))
    assert manifest.counts["documents"] == len(texts)
    assert manifest.counts["text_bytes"] == sum(len(text.encode()) for text in texts)


def test_the_fixture_has_several_units_and_shards_that_roll_over(dataset):
    names = [shard.name for shard in Manifest.load(dataset).splits["train"].shards]
    assert len({name.split("-")[1] for name in names}) > 3
    assert any(name.endswith("-001.tar") for name in names)


# A document of 3000 tokens takes 7680 bytes with its headers, and 6000 without.
@pytest.mark.parametrize("shard_bytes, documents", [(13_679, [1, 1, 1, 1, 1]), (13_680, [2, 2, 1]), (1000, [1] * 5)])
def test_a_shard_ends_before_the_document_that_does_not_fit(tmp_path, shard_bytes, documents):
    writer = SplitWriter(tmp_path, 0, "train", shard_bytes)
    for _ in range(5):
        writer.add(b"{}", np.zeros(3000, dtype="<u2"))
    index = writer.finish()
    assert [shard.documents for shard in writer.shards] == documents
    assert np.bincount(index["shard"]).tolist() == documents


def test_a_finished_dataset_holds_nothing_else_and_is_sound(dataset):
    manifest = Manifest.load(dataset)
    listed = {"manifest.json", "tokenizer.model", "index-train.npy", "index-validation.npy"}
    listed |= {shard.name for split in manifest.splits.values() for shard in split.shards}
    assert set(contents(dataset)) == listed
    assert verify_dataset(dataset) == []


@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_workers_changes_no_byte(dataset, settings, tokenizer_path, tmp_path, workers):
    build_dataset(settings, tokenizer_path, tmp_path / "data", workers)
    assert contents(tmp_path / "data") == contents(dataset)


def test_formats_and_units_do_not_change_the_documents(tmp_path, texts, tokenizer_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = []
    for number, unit_bytes in enumerate((None, 1000, 7777)):
        directory = tmp_path / str(number)
        build_dataset(
            BuildSettings(InputSettings((str(tmp_path / "in"),)), 0.25, unit_bytes), tokenizer_path, directory, 1
        )
        found.append([read_documents(directory, split) for split in ("train", "validation")])
    assert found[0] == found[1] == found[2]


def test_equal_documents_stand_on_one_side(tmp_path, tokenizer_path):
    texts = make_texts(40, seed=3)
    (tmp_path / "in").mkdir()
    for copy in range(2):
        for number, text in enumerate(texts):
            (tmp_path / "in" / f"{copy}-{number}.txt").write_text(text)
    settings = BuildSettings(InputSettings((str(tmp_path / "in"),)), 0.5, unit_bytes=5000)
    build_dataset(settings, tokenizer_path, tmp_path / "data", 1)
    sides = [Counter(map(tuple, read_documents(tmp_path / "data", split))) for split in ("train", "validation")]
    assert not set(sides[0]) & set(sides[1])
    assert set(sides[0].values()) == set(sides[1].values()) == {2}


def test_empty_and_invalid_documents_are_counted(tmp_path, tokenizer_path):
    (tmp_path / "in").mkdir()
    for name, content in {"a": b"", "b": b"text", "c": b"\xff", "d": b""}.items():
        (tmp_path / "in" / f"{name}.txt").write_bytes(content)
    settings = BuildSettings(InputSettings((str(tmp_path / "in"),), skip_invalid=True), 0.0)
    counts = build_dataset(settings, tokenizer_path, tmp_path / "data", 1).manifest.counts
    assert counts == {
        "documents": 1,
        "text_bytes": 4,
        "empty_dropped": 2,
        "invalid_skipped": 1,
        "null_skipped": 0,
    }
    assert verify_dataset(tmp_path / "data") == []


@pytest.mark.parametrize("names", [["a.txt", "b.txt"], ["a.jsonl"], ["a.txt", "a.jsonl"]])
def test_an_empty_corpus_is_an_error(tmp_path, tokenizer_path, names):
    (tmp_path / "in").mkdir()
    for name in names:
        (tmp_path / "in" / name).write_bytes(b"")
    with pytest.raises(DataError, match="empty corpus: in hold"):
        build_dataset(BuildSettings(InputSettings((str(tmp_path / "in"),)), 0.0), tokenizer_path, tmp_path / "data", 1)
    assert not (tmp_path / "data" / "manifest.json").exists()


def test_a_split_without_documents_is_an_error(tmp_path, tokenizer_path):
    (tmp_path / "a.txt").write_text("one document")
    with pytest.raises(DataError, match="none of 1 documents fell to validation"):
        build_dataset(
            BuildSettings(InputSettings((str(tmp_path / "a.txt"),)), 1e-9), tokenizer_path, tmp_path / "data", 1
        )


class TestRerun:
    def test_a_finished_dataset_is_left_as_it_is(self, dataset, settings, tokenizer_path, tmp_path):
        directory = shutil.copytree(dataset, tmp_path / "data")
        before = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
        report = build_dataset(settings, tokenizer_path, directory, 1)
        assert report.built == 0
        assert report.manifest == Manifest.load(dataset)
        assert {path: path.stat().st_mtime_ns for path in directory.iterdir()} == before

    @pytest.mark.parametrize("finished", [True, False])
    @pytest.mark.parametrize("what", ["fraction", "shards", "tokenizer", "more files", "touched", "other inputs"])
    def test_anything_else_is_refused_by_name(
        self, dataset, corpus, texts, settings, tokenizer_path, tmp_path, what, finished
    ):
        directory = tmp_path / "data"
        if finished:
            shutil.copytree(dataset, directory)
        else:
            self._begin(settings, tokenizer_path, directory, tmp_path)
        changed = shutil.copytree(corpus, tmp_path / corpus.name)
        message = "input corpus0 has"
        if what == "fraction":
            settings, message = dataclasses.replace(settings, validation_fraction=0.5), r"fraction is 0.5 \(then 0.25\)"
        elif what == "shards":
            settings, message = dataclasses.replace(settings, shard_bytes=1), "shard_bytes is 1 "
        elif what == "tokenizer":
            tokenizer_path, message = tmp_path / "other.model", "tokenizer is"
            tokenizer_path.write_bytes(train_tokenizer(texts, 350))
        else:
            if what == "more files":
                (changed / "zzz.txt").write_text("more")
            elif what == "touched":
                os.utime(changed / "001.txt")
            else:
                (changed / "001.txt").unlink()
            settings = dataclasses.replace(settings, inputs=InputSettings((str(changed),)))
        before = contents(directory)
        with pytest.raises(DataError, match=message):
            build_dataset(settings, tokenizer_path, directory, 1)
        assert contents(directory) == before

    @staticmethod
    def _begin(settings, tokenizer_path, directory, tmp_path):
        killed = run_and_kill(settings, tokenizer_path, directory, tmp_path, commits=9)
        assert killed == -signal.SIGKILL

    def test_a_damaged_finished_dataset_is_not_called_finished(self, dataset, settings, tokenizer_path, tmp_path):
        directory = shutil.copytree(dataset, tmp_path / "data")
        name = Manifest.load(directory).splits["train"].shards[0].name
        os.truncate(directory / name, 1024)
        with pytest.raises(DataError, match=name):
            build_dataset(settings, tokenizer_path, directory, 1)

    def test_a_directory_with_other_files_is_refused(self, settings, tokenizer_path, tmp_path):
        (tmp_path / "thesis.doc").write_text("precious")
        with pytest.raises(DataError, match=r"thesis\.doc"):
            build_dataset(settings, tokenizer_path, tmp_path, 1)

    def test_two_builds_at_once_are_refused(self, settings, tokenizer_path, tmp_path):
        (tmp_path / "build").mkdir()
        with (tmp_path / "build" / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(DataError, match="another build"):
                build_dataset(settings, tokenizer_path, tmp_path, 1)


KILLED_BUILD = """
import os, pickle, signal, sys
from pathlib import Path
settings, tokenizer, directory, commits, writes = pickle.loads(Path(sys.argv[1]).read_bytes())
import card_scale.data.shards as shards
from card_scale.corpus.build import build_dataset

def deadly(action, limit):
    calls = 0
    def wrapped(*arguments):
        nonlocal calls
        calls += 1
        if calls == limit:
            os.kill(os.getpid(), signal.SIGKILL)
        return action(*arguments)
    return wrapped

os.replace = deadly(os.replace, commits)
shards.ShardWriter._write = deadly(shards.ShardWriter._write, writes)
build_dataset(settings, tokenizer, directory, workers=1)
"""


def run_and_kill(settings, tokenizer_path, directory, tmp_path, commits=0, writes=0) -> int:
    """A build that is killed just before its n-th commit or n-th write into a shard; returns its exit status."""
    import pickle

    job = tmp_path / "job.pickle"
    job.write_bytes(pickle.dumps((settings, tokenizer_path, directory, commits, writes)))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", KILLED_BUILD, str(job)], env=environment, check=False).returncode


class TestKill:
    @pytest.mark.parametrize(
        "point", [{"commits": n} for n in (1, 2, 3, 5, 6, 7, 8, 20)] + [{"writes": 2}, {"writes": 25}]
    )
    def test_killed_once_and_started_again(self, dataset, settings, tokenizer_path, tmp_path, point):
        directory = tmp_path / "data"
        assert run_and_kill(settings, tokenizer_path, directory, tmp_path, **point) == -signal.SIGKILL
        assert not (directory / "manifest.json").exists()
        build_dataset(settings, tokenizer_path, directory, workers=1)
        assert contents(directory) == contents(dataset)

    def test_killed_again_and_again(self, dataset, settings, tokenizer_path, tmp_path):
        """Every attempt dies after a few commits, and yet each gets further: also through the last steps."""
        directory = tmp_path / "data"
        attempts = 0
        while run_and_kill(settings, tokenizer_path, directory, tmp_path, commits=11) == -signal.SIGKILL:
            attempts += 1
            assert attempts < 50
        assert attempts > 2
        assert contents(directory) == contents(dataset)

    @pytest.fixture
    def command(self, texts, tokenizer_path, tmp_path):
        """A build with another process that takes a while."""
        (tmp_path / "in").mkdir()
        generator = random.Random(4)
        for number in range(200):
            (tmp_path / "in" / f"{number}.txt").write_text("\n".join(generator.choices(texts, k=40)))
        command = [sys.executable, str(ROOT / "tools" / "data.py"), "build", str(tmp_path / "in"), "--workers", "2"]
        command += ["--tokenizer", str(tokenizer_path), "--output", str(tmp_path / "data"), "--unit-bytes", "100000"]
        return [*command, "--validation-fraction", "0.2"]

    def test_a_killed_parent_leaves_no_worker_behind(self, command, tmp_path):
        process = start(command)
        wait_until(lambda: list(tmp_path.glob("data/build/unit-*.json")) and len(children(process.pid)) > 1)
        workers = children(process.pid)
        process.kill()
        process.communicate()
        wait_until(lambda: not any(map(alive, workers)))
        assert not (tmp_path / "data" / "manifest.json").exists()
        assert start(command).wait() == 0
        whole = [str(tmp_path / "whole") if part == str(tmp_path / "data") else part for part in command]
        assert start(whole).wait() == 0
        assert contents(tmp_path / "data") == contents(tmp_path / "whole")

    def test_a_killed_worker_ends_the_build_with_a_message(self, command, tmp_path):
        process = start(command)
        wait_until(lambda: list(tmp_path.glob("data/build/unit-000000.json")))  # the other process takes the first unit
        for worker in children(process.pid):
            if b"spawn_main" in Path(f"/proc/{worker}/cmdline").read_bytes():
                os.kill(worker, signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode == 4
        assert "a worker process died" in errors
        assert "Traceback" not in errors
        assert start(command).wait() == 0
        assert verify_dataset(tmp_path / "data") == []


def start(command: list[str]) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def children(process: int) -> list[int]:
    path = Path(f"/proc/{process}/task/{process}/children")
    return [int(child) for child in path.read_text().split()]


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
