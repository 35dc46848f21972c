import os
from pathlib import Path

import pytest

from card_scale.corpus.input_files import Selection, describe_passed_over, find_files
from card_scale.corpus.sources import InputSettings, scan
from card_scale.errors import DataError
from tests.corpus.reading import read_texts


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def found(root: Path, *patterns: str, **settings):
    files = find_files(root, Selection(patterns or ("*.txt",), **settings))
    return [relative for _, relative in files.files], dict(files.passed_over)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def test_linked_directories_and_files_are_read(root, tmp_path):
    write(tmp_path, "out/a.txt", "out/deep/b.txt", "alone.txt", "in/own.txt")
    (root / "linked").symlink_to(tmp_path / "out")
    (root / "file.txt").symlink_to(tmp_path / "alone.txt")
    (tmp_path / "entrance").symlink_to(root)
    names = ["file.txt", "linked/a.txt", "linked/deep/b.txt", "own.txt"]
    assert found(root) == (names, {})
    assert found(tmp_path / "entrance") == (names, {})
    assert read_texts(root) == ["alone.txt", "out/a.txt", "out/deep/b.txt", "in/own.txt"]


def test_links_in_a_circle_end_and_what_they_lead_to_is_read_once(root):
    write(root, "a/x.txt", "b/y.txt", "z.txt")
    (root / "a" / "up").symlink_to("..")
    (root / "a" / "to_b").symlink_to("../b")
    (root / "b" / "to_a").symlink_to("../a")
    (root / "b" / "itself").symlink_to(".")
    (root / "aa.txt").symlink_to("z.txt")
    assert found(root) == (
        ["a/x.txt", "b/y.txt", "z.txt"],
        {"links to directories that are read anyway": 4, "links to files that are read anyway": 1},
    )


def test_many_directories_that_link_to_each_other_take_no_time(root):
    for number in range(30):
        write(root, f"{number}/x.txt")
        for other in range(30):
            (root / str(number) / f"to{other}").symlink_to(f"../{other}")
    names, passed_over = found(root)
    assert (len(names), passed_over) == (30, {"links to directories that are read anyway": 900})


def test_a_link_above_the_directory_leads_to_what_is_beside_it(root, tmp_path):
    write(tmp_path, "in/own.txt", "beside/a.txt")
    (root / "up").symlink_to("..")
    assert found(root) == (["own.txt", "up/beside/a.txt"], {"links to directories that are read anyway": 1})


def test_what_stands_in_a_hidden_directory_is_read_where_a_link_leads_there(root):
    """As git-annex keeps its files."""
    write(root, ".git/objects/12ab")
    (root / "a.txt").symlink_to(".git/objects/12ab")
    assert found(root) == (["a.txt"], {"hidden or backup directories (.git)": 1})


HIDDEN = [".git/a.txt", ".ipynb_checkpoints/a.txt", "__pycache__/a.txt", "sub/.hidden.txt", "sub/a.txt~", "._a.txt"]


def test_hidden_and_backup_names_are_passed_over_unless_wanted(root):
    write(root, "a.txt", *HIDDEN)
    names, passed_over = found(root)
    assert names == ["a.txt"]
    assert passed_over == {
        "hidden or backup directories (.git)": 1,
        "hidden or backup directories (.ipynb_checkpoints)": 1,
        "hidden or backup directories (__pycache__)": 1,
        "hidden or backup files": 3,
    }
    assert found(root, "*.txt", "*~", hidden=True) == (sorted(["a.txt", *HIDDEN]), {})
    write(root / ".cache", "b.txt")
    assert found(root / ".cache")[0] == ["b.txt"]  # named by the user


def test_patterns_ignore_case_and_compression(root):
    write(root, "a.TXT", "b.txt.gz", "C.Txt.ZST", "d.md", "e.md.gz", "README", "x.tar.gz", "y.md")
    assert found(root) == (
        ["C.Txt.ZST", "a.TXT", "b.txt.gz"],
        {".md files": 2, ".md.gz files": 1, ".tar.gz files": 1, "files without an ending": 1},
    )
    assert found(root, "*.MD")[0] == ["d.md", "e.md.gz", "y.md"]
    assert found(root, "*.md.gz")[0] == ["e.md.gz"]


def test_exclusions_are_counted(root):
    write(root, "a.txt", "skip/b.txt", "skip/c/d.txt", "keep/e.txt", "keep/f.txt")
    assert found(root, exclude=("SKIP/*", "*/f.txt")) == (
        ["a.txt", "keep/e.txt"],
        {"excluded directories": 1, "excluded files": 1},
    )


def test_what_is_no_regular_file_is_passed_over(root):
    os.mkfifo(root / "pipe.txt")
    write(root, "a.txt")
    assert found(root) == (["a.txt"], {"no regular files": 1})


def test_a_wanted_link_that_leads_nowhere_is_named(root):
    write(root, "a.txt")
    (root / "b.txt").symlink_to("gone")
    (root / "c.txt").symlink_to("c.txt")
    with pytest.raises(DataError, match=r"b\.txt: cannot be read"):
        scan(InputSettings((str(root),)))
    assert len(scan(InputSettings((str(root),), exclude=("b.txt", "c.txt"))).pieces) == 1


def test_what_is_passed_over_is_listed_by_kind_and_count(root):
    write(root, "a.txt", "b.png", "c.png", ".git/x")
    (root / "empty.jsonl").write_bytes(b"")
    (root / "empty.txt").write_bytes(b"")
    assert describe_passed_over(scan(InputSettings((str(root),))).passed_over) == (
        "passed over: 1 empty files, 1 hidden or backup directories (.git), 2 .png files"
    )
    assert describe_passed_over({}) == ""
    many = {f".{number:03d} files": 1000 - number for number in range(50)} | {"excluded files": 1}
    assert describe_passed_over(many).startswith("passed over: 1 excluded files, 1000 .000 files, 999 .001 files")
    assert describe_passed_over(many).endswith(f"991 .009 files, {sum(range(951, 991))} files with 40 other endings")


def test_a_directory_without_a_wanted_file_says_what_is_there(root):
    write(root, "a.png")
    with pytest.raises(DataError, match=r"no file matches \*\.txt.* passed over: 1 \.png files"):
        scan(InputSettings((str(root),)))
