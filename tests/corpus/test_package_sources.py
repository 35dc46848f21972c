"""The sources of packages: which files of which wheels become documents, and what is refused."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from card_scale.corpus.package_sources import PinnedWheel, download, read_list, read_sources, wheels_by_hash
from card_scale.errors import DataError
from card_scale.files import sha256_file

ROOT = Path(__file__).parents[2]
HASH = "0123456789abcdef" * 4


def make_wheel(directory: Path, name: str, files: dict[str, str | bytes]) -> PinnedWheel:
    """Write a wheel that pip accepts, and return the line that pins it."""
    path = directory / f"{name}-1.0-py3-none-any.whl"
    path.parent.mkdir(parents=True, exist_ok=True)
    information = f"{name}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: absent\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in files.items():
            archive.writestr(member, content)
        archive.writestr(f"{information}/METADATA", metadata)
        archive.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{information}/RECORD", "")
    return PinnedWheel(f"{name}==1.0", sha256_file(path))


def write_list(path: Path, wheels: list[PinnedWheel]) -> Path:
    path.write_text("# a comment\n\n" + "".join(f"{name} --hash=sha256:{sha256}\n" for name, sha256 in wheels))
    return path


def sources(directory: Path, wheels: list[PinnedWheel], shortest: int = 5, longest: int = 50):
    return read_sources(wheels, wheels_by_hash(directory), shortest=shortest, longest=longest)


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tools/package_sources.py"), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PIP_NO_INDEX": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_python_files_of_the_right_length_are_documents_in_the_order_of_packages_and_paths(tmp_path):
    two = make_wheel(tmp_path, "two", {"two/b.py": "x = 'ü'\r\n", "two/a.py": "12345", "two/data.json": "{'a': 1}"})
    one = make_wheel(tmp_path, "one", {"one/short.py": "1234", "one/long.py": "x" * 51, "one/fits.py": "x" * 50})
    found = sources(tmp_path, [two, one])
    assert [tuple(file) for file in found.files] == [
        ("x" * 50, "one/fits.py", "one==1.0"),
        ("12345", "two/a.py", "two==1.0"),
        ("x = 'ü'\r\n", "two/b.py", "two==1.0"),
    ]
    assert found.left_out == {"files below 5 bytes": 1, "files above 50 bytes": 1}
    assert sources(tmp_path, [one, two]) == found


def test_a_text_is_taken_once_across_packages_and_what_is_not_utf8_never(tmp_path):
    copies = {"{}/__init__.py": "shared = 1", "{}/again.py": "shared = 1"}
    wheels = [
        make_wheel(tmp_path, name, {path.format(name): text for path, text in copies.items()}) for name in ("b", "a")
    ]
    wheels.append(make_wheel(tmp_path, "c", {"c/latin.py": "s = 'ü'".encode("latin-1")}))
    found = sources(tmp_path, wheels)
    assert [file.path for file in found.files] == ["a/__init__.py"]
    assert found.left_out == {"copies of another file": 3, "files that are not UTF-8": 1}


def test_wheels_of_which_nothing_is_left_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no \.py file of 5 to 50 bytes in any of 1 wheels"):
        sources(tmp_path, [make_wheel(tmp_path, "a", {"a/__init__.py": ""})])


def test_a_wheel_that_is_not_there_or_has_another_content_is_named(tmp_path):
    wheel = make_wheel(tmp_path, "a", {"a/a.py": "x = 12345"})
    with pytest.raises(DataError, match=rf"b==1\.0: none of 1 wheels has the sha256 {HASH}"):
        sources(tmp_path, [wheel, PinnedWheel("b==1.0", HASH)])
    (path,) = tmp_path.glob("*.whl")
    path.write_bytes(path.read_bytes()[:-1])  # as a copy that was interrupted
    with pytest.raises(DataError, match=r"a==1\.0: none of 1 wheels"):
        sources(tmp_path, [wheel])


MEMBER = 30 + len("a/a.py")
"""Where the first member's bytes begin, behind its header."""


def with_bytes(content: bytes, places: dict[int, int]) -> bytes:
    changed = bytearray(content)
    for place, value in places.items():
        changed[place] = value
    return bytes(changed)


def longer_than_the_file(content: bytes) -> bytes:
    entry = content.index(b"PK\1\2")  # the first member's: not compressed, and both lengths from 65,280 on
    return with_bytes(content, {entry + 10: 0, entry + 21: 0xFF, entry + 25: 0xFF})


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda content: content[:-30], "not a zip file"),
        (lambda content: with_bytes(content, {MEMBER + 4: content[MEMBER + 4] ^ 0x55}), "Bad CRC-32"),
        (lambda content: with_bytes(content, {MEMBER: 0x07}), "invalid block type"),
        (longer_than_the_file, ""),
        (lambda content: with_bytes(content, {6: 1, content.index(b"PK\1\2") + 8: 1}), "encrypted"),
        (lambda content: with_bytes(content, {8: 99, content.index(b"PK\1\2") + 10: 99}), "not supported"),
    ],
)
def test_a_wheel_that_is_damaged_as_it_was_published_is_named(tmp_path, damage, reason):
    make_wheel(tmp_path, "a", {"a/a.py": "x = 12345"})
    (path,) = tmp_path.glob("*.whl")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=rf"{re.escape(str(path))}: damaged wheel, no sound zip file \(.*{reason}"):
        sources(tmp_path, [PinnedWheel("a==1.0", sha256_file(path))], longest=100_000)


def test_a_list_is_read_in_its_order(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text(f"# head\n\n  b_b==2.0.post1  --hash=sha256:{HASH}\r\nA.a==1!1.0+x --hash=sha256:{HASH[::-1]}")
    assert read_list(path) == [("b_b==2.0.post1", HASH), ("A.a==1!1.0+x", HASH[::-1])]


@pytest.mark.parametrize(
    "line",
    [
        "a==1.0",
        f"a --hash=sha256:{HASH}",
        f"a>=1.0 --hash=sha256:{HASH}",
        f"a==1.* --hash=sha256:{HASH}",
        f"a==1.0 --hash=sha256:{HASH[:-1]}",
        f"a==1.0 --hash=md5:{HASH[:32]}",
        f"a==1.0 --hash=sha256:{HASH} --hash=sha256:{HASH[::-1]}",
        f"a==1.0; python_version > '3' --hash=sha256:{HASH}",
        "--index-url https://example.org",
        "./a-1.0-py3-none-any.whl",
    ],
)
def test_a_line_that_pins_no_wheel_is_refused_with_its_number(tmp_path, line):
    path = tmp_path / "list.txt"
    path.write_text(f"b==1.0 --hash=sha256:{HASH}\n{line}\n")
    with pytest.raises(DataError, match=rf"list\.txt:2: {re.escape(repr(line))} does not pin one wheel"):
        read_list(path)


def test_a_list_without_packages_is_refused(tmp_path):
    (tmp_path / "list.txt").write_text("# nothing\n")
    with pytest.raises(DataError, match="no package in it"):
        read_list(tmp_path / "list.txt")


def test_the_preset_s_list_is_one():
    wheels = read_list(ROOT / "launchers/studies/python-packages.txt")
    assert len({package.lower() for package, _ in wheels}) == len({sha256 for _, sha256 in wheels}) == len(wheels)


def test_pip_downloads_what_is_missing_or_cut_short_and_its_failure_is_told(tmp_path, monkeypatch):
    """The real pip, with a directory for an index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    wheels = [make_wheel(tmp_path / "index", name, {f"{name}/a.py": f"name = '{name}'"}) for name in ("a", "b")]
    packages = write_list(tmp_path / "list.txt", wheels)
    here = tmp_path / "wheels"
    here.mkdir()
    (here / "b-1.0-py3-none-any.whl").write_bytes(b"PK")
    download(packages, here)
    assert set(wheels_by_hash(here)) == {wheel.sha256 for wheel in wheels}

    write_list(packages, [*wheels, PinnedWheel("c==1.0", HASH)])
    with pytest.raises(DataError, match=r"(?s)list\.txt: pip could not download its wheels \(exit code 1\):.*c==1\.0"):
        download(packages, here)


def test_the_tool_writes_the_same_bytes_from_wheels_in_any_order_without_pip(tmp_path):
    wheels = [make_wheel(tmp_path / "out/wheels", name, {f"{name}/a.py": f"name = '{name}'"}) for name in ("a", "b")]
    written = []
    for order in (wheels, wheels[::-1]):
        packages = write_list(tmp_path / "list.txt", order)
        done = run(tmp_path / "out/sources.jsonl", "--packages", packages, "--shortest", 5)
        assert (done.returncode, done.stderr) == (0, "")
        written.append((tmp_path / "out/sources.jsonl").read_bytes())
    assert written[0] == written[1]
    assert [json.loads(line) for line in written[0].splitlines()] == [
        {"text": f"name = '{name}'", "path": f"{name}/a.py", "package": f"{name}==1.0"} for name in ("a", "b")
    ]
    assert "2 files of 2 packages, 20 characters" in done.stdout


def test_the_tool_ends_with_the_codes_of_its_errors(tmp_path):
    assert run(tmp_path / "out.jsonl", "--shortest", 9, "--longest", 8).returncode == 2
    assert run(tmp_path).returncode == 2
    missing = run(tmp_path / "out.jsonl", "--packages", tmp_path / "none.txt")
    assert (missing.returncode, "none.txt" in missing.stderr) == (4, True)
