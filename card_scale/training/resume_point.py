"""The checkpoint that a run goes on from, and whether the run's data are those that it was begun with.

Needs no engine and no process group: a dry run asks it too.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from card_scale.checkpoint import directory as directories
from card_scale.checkpoint.format import CheckpointManifest
from card_scale.checkpoint.reader import CheckpointReader
from card_scale.errors import CheckpointError, DataError
from card_scale.training.run_data import RunData

VALIDATION_DIGEST = "validation_digest"
"""Key of a checkpoint's state: the digest of the dataset that the run evaluates on."""


class ResumePoint(NamedTuple):
    """A run's latest complete checkpoint."""

    path: Path
    manifest: CheckpointManifest
    passed_over: list[str]
    """What is wrong with the checkpoints that stood before it in the order."""
    state: dict[str, Any]

    def describe(self) -> str:
        """Say which it is, and what was passed over."""
        problems = "".join(f"\nwarning: passed over: {problem}" for problem in self.passed_over)
        return f"{self.path} ({self.manifest.layout}, {self.manifest.engine}){problems}"


def find(checkpoints: Path, damaged: Mapping[int, str] = MappingProxyType({})) -> ResumePoint | None:
    """Return where a run with these checkpoints goes on, None where there are none.

    ``damaged``: steps that are known to be, with what is wrong. Hashes are not looked at here.

    Raises CheckpointError where checkpoints exist but none is complete.
    """
    known = dict(damaged)
    while (latest := directories.find_latest(checkpoints, known)) is not None:
        path, manifest, passed_over = latest
        try:
            return ResumePoint(path, manifest, passed_over, CheckpointReader(path, manifest).state)
        except CheckpointError as error:
            known[manifest.step] = str(error)
    return None


def check_same_data(point: ResumePoint, data: RunData) -> None:
    """Raise DataError, naming both, where tokenizer, training or validation data are not the checkpoint's.

    How many of the validation samples are evaluated (``data.validation_samples``) may change. Checkpoints written
    before the validation data's digest was kept say nothing about it.
    """
    manifest = point.manifest
    if manifest.tokenizer_sha256 != data.tokenizer_sha256:
        raise DataError(
            f"checkpoint {point.path} was trained with tokenizer {manifest.tokenizer_sha256[:12]}, the data has "
            f"{data.tokenizer_sha256[:12]}"
        )
    if manifest.data_digest != data.train.manifest.digest:
        raise DataError(
            f"checkpoint {point.path} was trained on data {manifest.data_digest}, data.path holds "
            f"{data.train.manifest.digest}: other documents, or others left out of validation since "
            "(tools/data.py decontaminate). Train on the former data, or start a new run.dir"
        )
    held_out, held_out_now = point.state.get(VALIDATION_DIGEST), data.validation.manifest.digest
    if held_out not in (None, held_out_now):
        raise DataError(
            f"checkpoint {point.path} is of a run evaluated on data {held_out}, data.validation holds {held_out_now}: "
            "other documents, or others left out since (tools/data.py decontaminate). "
            "Evaluate on the former data, or start a new run.dir"
        )
