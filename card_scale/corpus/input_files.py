"""Which files of a directory are read, and what is passed over.

Links are followed. Every directory is entered once and every file read once, whatever links lead there, so links in a
circle end; what stands there itself is read under its own name, and through a link otherwise.
"""

import fnmatch
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from card_scale.corpus.formats.names import without_compression
from card_scale.errors import DataError

_SHOWN_ENDINGS = 10

BACKUP_DIRECTORIES = ("__pycache__", "__MACOSX", "lost+found")
"""Directories that programs leave behind, passed over like hidden ones."""

# Beside the shards that Hugging Face's save_to_disk writes; state.json only where one of the others says so.
_DATASET_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json")


@dataclass(frozen=True)
class Selection:
    """Which names are taken in a directory.

    Patterns are shell ones and ignore case. ``patterns`` are matched with a file's name, with and without the ending
    of its compression; ``exclude`` with the path below the directory, where ``*`` also matches ``/``. ``hidden``
    also takes names that begin with a dot or end with ``~``, and what stands in ``BACKUP_DIRECTORIES``.
    """

    patterns: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    hidden: bool = False

    def takes(self, name: str) -> bool:
        """Whether a file of this name is one of those wanted."""
        return any(
            fnmatch.fnmatchcase(form.lower(), pattern.lower())
            for form in (name, without_compression(name))
            for pattern in self.patterns
        )

    def leaves_out(self, relative: str) -> bool:
        """Whether a path below the directory is excluded."""
        return any(fnmatch.fnmatchcase(relative.lower(), pattern.lower()) for pattern in self.exclude)

    def leaves_out_directory(self, relative: str) -> bool:
        """Whether everything below a directory, given with its final slash, is excluded."""
        return any(
            pattern.endswith("*") and fnmatch.fnmatchcase(relative.lower(), pattern.lower()) for pattern in self.exclude
        )

    def is_hidden(self, name: str) -> bool:
        """Whether a name is passed over because it is hidden or a backup."""
        return not self.hidden and (name.startswith(".") or name.endswith("~") or name in BACKUP_DIRECTORIES)


@dataclass
class FoundFiles:
    """The files of a directory."""

    files: list[tuple[Path, str]] = field(default_factory=list)
    """Each with its path below the directory, in the order of these."""
    passed_over: Counter[str] = field(default_factory=Counter)
    """How many of each kind of thing are not read."""


def find_files(root: Path, selection: Selection) -> FoundFiles:
    """Find the files of a directory that a selection takes; the order is that of their names.

    Raises:
        DataError: a directory that cannot be listed, or a wanted name that leads nowhere.
    """
    return _Walk(selection).find(root)


class _Walk:
    """One walk; what links lead to waits until everything that stands in the directory itself has been seen."""

    def __init__(self, selection: Selection):
        self._selection = selection
        self._found = FoundFiles()
        self._directories: set[str] = set()
        self._files: set[str] = set()

    def find(self, root: Path) -> FoundFiles:
        links = self._enter(root, "")
        while links:  # in rounds: what a link leads to may hold further links
            links = [further for link in sorted(links) for further in self._follow(*link)]
        self._found.files.sort(key=lambda item: item[1])
        return self._found

    def _enter(self, directory: Path, below: str) -> list[tuple[str, Path]]:
        """Take what stands below a directory; returns the links there, each with its name."""
        identity = os.path.realpath(directory)
        if identity in self._directories:
            self._found.passed_over["links to directories that are read anyway"] += 1
            return []
        self._directories.add(identity)
        links: list[tuple[str, Path]] = []
        entries = _entries(directory)
        described = any(entry.name in _DATASET_DESCRIPTIONS for entry in entries)
        for entry in entries:
            relative = below + entry.name
            is_directory = _is_directory(entry)
            if self._is_passed_over(entry, relative, is_directory, described):
                continue
            if entry.is_symlink():
                links.append((relative, Path(entry.path)))
            elif is_directory:
                links += self._enter(Path(entry.path), relative + "/")
            else:
                self._take(Path(entry.path), relative, os.path.join(identity, entry.name))
        return links

    def _is_passed_over(self, entry: os.DirEntry[str], relative: str, is_directory: bool, described: bool) -> bool:
        if self._selection.is_hidden(entry.name):
            kind = f"hidden or backup directories ({entry.name})" if is_directory else "hidden or backup files"
        elif is_directory and self._selection.leaves_out_directory(relative + "/"):
            kind = "excluded directories"
        elif is_directory:
            return False
        elif described and (entry.name in _DATASET_DESCRIPTIONS or entry.name == "state.json"):
            kind = "descriptions of a Hugging Face dataset"
        elif not self._selection.takes(entry.name):
            kind = _ending(entry.name)
        elif self._selection.leaves_out(relative):
            kind = "excluded files"
        elif not _is_file_or_leads_nowhere(entry):
            kind = "no regular files"
        else:
            return False
        self._found.passed_over[kind] += 1
        return True

    def _follow(self, relative: str, path: Path) -> list[tuple[str, Path]]:
        if path.is_dir():
            return self._enter(path, relative + "/")
        self._take(path, relative, os.path.realpath(path))
        return []

    def _take(self, path: Path, relative: str, identity: str) -> None:
        if identity in self._files:
            self._found.passed_over["links to files that are read anyway"] += 1
            return
        self._files.add(identity)
        self._found.files.append((path, relative))


def _entries(directory: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{directory}: cannot list the directory ({error.strerror})") from error


def _is_directory(entry: os.DirEntry[str]) -> bool:
    # os.path answers for a link to itself too, where the entry raises; it costs a system call, so for links only.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_file_or_leads_nowhere(entry: os.DirEntry[str]) -> bool:
    if entry.is_symlink():
        return os.path.isfile(entry.path) or not os.path.exists(entry.path)
    return entry.is_file()


def _ending(name: str) -> str:
    inner = without_compression(name)
    stem, dot, ending = inner.rpartition(".")
    shown = f".{ending.lower()}{name[len(inner) :].lower()}" if stem and dot else name[len(inner) :]
    return f"{shown} files" if shown else "files without an ending"


def describe_passed_over(passed_over: Mapping[str, int]) -> str:
    """One line that says what was not read, plain endings last and the rarest of them as one; empty for nothing."""
    kinds = sorted(passed_over.items(), key=lambda item: (item[0].startswith("."), -item[1], item[0]))
    rare = [item for item in kinds if item[0].startswith(".")][_SHOWN_ENDINGS:]
    shown = [f"{count} {kind}" for kind, count in kinds[: len(kinds) - len(rare)]]
    if rare:
        shown.append(f"{sum(count for _, count in rare)} files with {len(rare)} other endings")
    return "passed over: " + ", ".join(shown) if shown else ""
