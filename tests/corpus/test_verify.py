import dataclasses
import hashlib
import io
import os
import shutil
import tarfile

import numpy as np
import pytest

from card_scale.corpus.summary import show_documents
from card_scale.corpus.tokenizer_training import train_tokenizer
from card_scale.corpus.verify import verify_dataset
from card_scale.data.manifest import FileRecord, Manifest, load_index
from card_scale.data.shards import INDEX_DTYPE, ShardWriter
from card_scale.data.stream import PackedStream
from card_scale.data.tokenizer import EOS_ID, MASK_ID
from card_scale.errors import DataError
from card_scale.files import sha256_file


@pytest.fixture
def copy(dataset, tmp_path):
    return shutil.copytree(dataset, tmp_path / "data")


@pytest.fixture
def shard(copy):
    """A shard with several documents."""
    return next(shard for shard in Manifest.load(copy).splits["train"].shards if shard.documents > 2)


def members(path):
    with tarfile.open(path) as archive:
        return archive.getmembers()


def keep(path, size):
    path.write_bytes(path.read_bytes()[:size])


def zero(path, begin, end):
    content = bytearray(path.read_bytes())
    content[begin:end] = bytes(end - begin)
    path.write_bytes(content)


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "cut after a member": lambda path: keep(path, members(path)[3].offset),
    "cut after a sample": lambda path: keep(path, members(path)[2].offset),
    "cut inside a header": lambda path: keep(path, members(path)[2].offset + 200),
    "cut after a header": lambda path: keep(path, members(path)[3].offset_data),
    "cut inside data": lambda path: keep(path, members(path)[3].offset_data + 140),
    "one end block missing": lambda path: keep(path, end_of_members(path) + 512),
    "both end blocks missing": lambda path: keep(path, end_of_members(path)),
    "end blocks overwritten": lambda path: flip(path, end_of_members(path) + 3),
    "tail zeroed": lambda path: zero(path, members(path)[2].offset, path.stat().st_size),
    "header flipped": lambda path: flip(path, members(path)[2].offset + 5),
    "payload zeroed": lambda path: zero(path, members(path)[1].offset_data + 128, members(path)[1].offset_data + 130),
    "description damaged": lambda path: zero(path, members(path)[0].offset_data, members(path)[0].offset_data + 2),
    "npy header damaged": lambda path: flip(path, members(path)[1].offset_data + 30),
    "emptied": lambda path: os.truncate(path, 0),
    "removed": os.unlink,
}


def end_of_members(path):
    last = members(path)[-1]
    return last.offset_data + last.size + -last.size % 512


@pytest.mark.parametrize("kind", DAMAGE)
def test_every_damage_to_a_shard_is_found(copy, shard, kind):
    DAMAGE[kind](copy / shard.name)
    problems = verify_dataset(copy)
    assert problems
    assert all(shard.name in problem for problem in problems)


def test_other_processes_find_the_same(copy, shard):
    DAMAGE["cut inside data"](copy / shard.name)
    assert verify_dataset(copy, workers=2) == verify_dataset(copy, workers=1) != []


@pytest.mark.parametrize("kind", ["tail zeroed", "header flipped"])
def test_a_tar_reader_alone_would_have_noticed_nothing(copy, shard, kind):
    """Why the manifest exists: a streaming reader ends early on this damage, as if the shard were shorter."""
    DAMAGE[kind](copy / shard.name)
    with tarfile.open(copy / shard.name, mode="r|*") as archive:
        assert len(list(archive)) < 2 * shard.documents


def test_even_where_hashes_agree_the_content_is_checked(copy):
    """Shards that a wrong builder made, with a manifest that fits them."""
    bad = {
        "control id 4": [7, MASK_ID, 8, EOS_ID],
        "control id 3": [7, EOS_ID, 8, EOS_ID],
        "outside the vocabulary": [7, 5000, EOS_ID],
        "ends with id 8": [7, 8],
        "non-empty": [],
    }
    manifest = Manifest.load(copy)
    with ShardWriter(copy / "train-000000-000.tar") as writer:
        for number, tokens in enumerate(bad.values()):
            writer.add(f"000000-{number:09d}", b"{}", np.array(tokens, dtype="<u2"))
        record, index = writer.finish()
    replace_train(copy, manifest, [record], index)
    problems = verify_dataset(copy)
    for number, part in enumerate(bad):
        assert any(f"000000-{number:09d}.npy" in problem and part in problem for problem in problems)


def replace_train(directory, manifest, shards, index):
    for path in directory.glob("train-*.tar"):
        if path.name not in {shard.name for shard in shards}:
            path.unlink()
    content = io.BytesIO()
    np.save(content, index.astype(INDEX_DTYPE))
    (directory / "index-train.npy").write_bytes(content.getvalue())
    record = FileRecord("index-train.npy", len(content.getvalue()), hashlib.sha256(content.getvalue()).hexdigest())
    split = manifest.splits["train"]
    train = type(split)(len(index), int(index["tokens"].sum()), record, tuple(shards))
    Manifest(**{**vars(manifest), "splits": {**manifest.splits, "train": train}}).save(directory)


def test_an_index_that_points_elsewhere_is_found(copy):
    manifest = Manifest.load(copy)
    split = manifest.splits["train"]
    index = load_index(copy, split).copy()
    index["offset"][1] += 2
    replace_train(copy, manifest, split.shards, index)
    assert any("the index says" in problem and split.shards[0].name in problem for problem in verify_dataset(copy))


@pytest.mark.parametrize("name", ["tokenizer.model", "index-train.npy", "index-validation.npy"])
@pytest.mark.parametrize("damage", [os.unlink, lambda path: os.truncate(path, 99), lambda path: flip(path, 77)])
def test_damage_beside_the_shards_is_found(copy, name, damage):
    damage(copy / name)
    problems = verify_dataset(copy)
    assert problems
    assert all(name in problem for problem in problems)


def test_another_tokenizer_is_found(copy, texts):
    (copy / "tokenizer.model").write_bytes(train_tokenizer(texts, 401))
    assert "tokenizer.model" in " ".join(verify_dataset(copy))


def test_files_that_nothing_lists_are_found(copy):
    (copy / "train-000099-000.tar").write_bytes(bytes(10240))
    (copy / "train-000001-000.tar.partial").write_bytes(b"")
    problems = verify_dataset(copy)
    assert len(problems) == 2
    assert "train-000099-000.tar" in problems[0]


def test_without_a_manifest_there_is_nothing_to_verify(copy):
    (copy / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"manifest\.json"):
        verify_dataset(copy)


LINKS = {"symbolic.json": tarfile.SYMTYPE, "hard.json": tarfile.LNKTYPE}
OTHER_KINDS = {
    "character.json": tarfile.CHRTYPE,
    "block.npy": tarfile.BLKTYPE,
    "fifo.json": tarfile.FIFOTYPE,
    "folder.json": tarfile.DIRTYPE,
}


def append_hostile_members(path, hostile, outside) -> list[str]:
    """Put into a shard what no build makes; return the names of the members."""
    contents = {f"code.{ending}": hostile.files["pickle"] for ending in ("pickle", "pkl", "pyd", "pt", "pth")}
    # An array stands after the description of its document.
    contents |= {"array.json": b"{}", "array.npy": hostile.files["npy of objects"]}
    contents |= {"archive.json": b"{}", "archive.npy": hostile.files["npz of objects"]}
    contents |= {"description.json": hostile.files["pickle in ASCII"]}
    contents |= {f"../{outside.name}.json": b"{}", f"{outside}.json": b"{}", f"{outside}.npy": b"", "a/b.json": b"{}"}
    with tarfile.open(path, "a") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, kind in {**LINKS, **OTHER_KINDS}.items():
            for target in (name, str(outside), "nowhere") if name in LINKS else ("",):
                member = tarfile.TarInfo(name)
                member.type, member.linkname = kind, target
                archive.addfile(member)
    return [name for name in (*contents, *LINKS, *OTHER_KINDS) if name not in ("array.json", "archive.json")]


def test_members_that_no_build_makes_are_named_and_never_read(copy, shard, hostile, tmp_path):
    manifest = Manifest.load(copy)
    before = PackedStream(copy, "train", 0, 16)
    samples = before.samples(np.arange(before.sample_count))
    outside = tmp_path / "outside"
    names = append_hostile_members(copy / shard.name, hostile, outside)
    # With a manifest that agrees.
    record = dataclasses.replace(shard, bytes=(copy / shard.name).stat().st_size, sha256=sha256_file(copy / shard.name))
    split = manifest.splits["train"]
    train = dataclasses.replace(split, shards=tuple(record if one == shard else one for one in split.shards))
    dataclasses.replace(manifest, splits={**manifest.splits, "train": train}).save(copy)
    files = sorted(tmp_path.rglob("*"))

    problems = []
    for most in (10, 100):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("card_scale.corpus.verify._MOST_PROBLEMS", most)
            problems = verify_dataset(copy)
        assert problems
        assert all(problem.startswith(f"{copy / shard.name}: ") for problem in problems)
    for name in names:
        assert any(f": member {name}: " in problem for problem in problems), name
    after = PackedStream(copy, "train", 0, 16)
    assert np.array_equal(after.samples(np.arange(after.sample_count)), samples)
    assert show_documents(copy, "train", 0, split.documents, 10).count("--- train document") == split.documents
    assert sorted(tmp_path.rglob("*")) == files
