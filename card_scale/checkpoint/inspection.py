"""What a run's checkpoints are, and where two of them differ: for people, without an engine."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

from card_scale.checkpoint import directory as directories
from card_scale.checkpoint.format import WEIGHT, CheckpointManifest
from card_scale.checkpoint.reader import CheckpointReader
from card_scale.errors import CheckpointError


class Listed(NamedTuple):
    """One directory among a run's checkpoints."""

    step: int
    path: Path
    manifest: CheckpointManifest | None
    """None where it is not complete."""
    problem: str
    """What is wrong; empty where nothing is, by names and sizes."""
    is_latest: bool
    """Whether the pointer names it."""
    saved: str
    """Local time of its publication."""

    @property
    def bytes(self) -> int:
        """Of all files."""
        return 0 if self.manifest is None else sum(file.bytes for file in self.manifest.files.values())


def root_of(path: Path) -> Path:
    """Return the ``checkpoints`` directory of a run, given it or the run. CheckpointError where there is none."""
    for root in (path.resolve(), path.resolve() / "checkpoints"):
        if directories.published_steps(root):
            return root
    raise CheckpointError(f"{path}: there are no checkpoints; give a run directory or its checkpoints")


def checkpoints(root: Path) -> list[Listed]:
    """Return the published checkpoints of a run, oldest first."""
    pointed = directories.pointed_step(root)
    found = []
    for step in reversed(directories.published_steps(root)):
        path = root / directories.name_of(step)
        try:
            saved = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
        except FileNotFoundError:
            continue  # a run that is going on has pruned it
        manifest, problem = None, ""
        try:
            manifest = directories.complete_manifest(root, step)
        except CheckpointError as error:
            problem = str(error)
        found.append(Listed(step, path, manifest, problem, step == pointed, saved))
    return found


def pointer_problem(root: Path) -> str:
    """Return what is wrong with the pointer to a run's latest checkpoint; empty where nothing is."""
    step = directories.pointed_step(root)
    if step is None:
        return (
            f"{root / directories.POINTER} is missing or names no step; a resume takes the newest complete checkpoint"
        )
    if step not in directories.published_steps(root):
        return f"{root / directories.POINTER} names step {step}, whose checkpoint is gone; a resume would pass it over"
    return ""


class TensorDifference(NamedTuple):
    """Where a state of a parameter differs between two checkpoints."""

    name: str
    key: str
    what: str
    """Missing in one, another shape, or by how much the values differ."""


def tensor_differences(one: CheckpointReader, other: CheckpointReader, keys: list[str]) -> Iterator[TensorDifference]:
    """Yield the states among ``keys`` that differ, one parameter in memory at a time."""
    for name in sorted({*one.names(), *other.names()}):
        missing = [reader.directory for reader in (one, other) if name not in reader.manifest.tensors]
        if missing:
            yield TensorDifference(name, WEIGHT, f"is not in {missing[0]}")
            continue
        if one.shape(name) != other.shape(name):
            yield TensorDifference(name, WEIGHT, f"has shapes {one.shape(name)} and {other.shape(name)}")
            continue
        for key in keys:
            first, second = one.read(name, key).double(), other.read(name, key).double()
            difference = (first - second).norm().item()
            if difference != 0.0:  # NaN differs too
                scale = max(first.norm().item(), 1e-300)
                largest = (first - second).abs().max().item()
                what = f"differs by {difference / scale:.2e} of its norm, at most {largest:.2e} in an element"
                yield TensorDifference(name, key, what)


def configuration_differences(one: CheckpointReader, other: CheckpointReader) -> dict[str, tuple[object, object]]:
    """Return the configuration keys whose values differ, with both; None where one has no such key.

    Raises CheckpointError where one of them is no configuration.
    """
    first, second = _configuration(one), _configuration(other)
    return {
        key: (first.get(key), second.get(key)) for key in sorted({*first, *second}) if first.get(key) != second.get(key)
    }


def _configuration(reader: CheckpointReader) -> dict[str, object]:
    """Return a checkpoint's configuration by dotted key, also of a version whose keys this one does not know."""
    try:
        tree = yaml.safe_load(reader.config_path.read_text(encoding="utf-8"))
        return {f"{group}.{key}": value for group, keys in tree.items() for key, value in (keys or {}).items()}
    except (yaml.YAMLError, ValueError, AttributeError) as error:  # AttributeError: no groups of keys
        raise CheckpointError(f"checkpoint {reader.directory}: {reader.config_path.name} is damaged: {error}") from None
