"""What a plan and a result table need to know about a dataset, from its manifest alone."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from card_scale.data.manifest import MANIFEST_NAME, Manifest
from card_scale.errors import DataError
from card_scale.studies.grid import StatedCorpus

STATED = "stated"
"""Digest of a corpus that is stated in the grid and does not exist yet."""


class DatasetFacts(NamedTuple):
    """What a manifest says of a dataset: its sizes and identities."""

    vocabulary_size: int
    train_tokens: int
    validation_tokens: int
    digest: str
    tokenizer_sha256: str
    validation_split: str
    """Hash of the validation split's documents, those left out as contaminated, and the tokenizer."""
    manifest: Manifest | None
    """None of a corpus that is stated."""

    @property
    def exists(self) -> bool:
        """Whether the dataset is on disk."""
        return self.digest != STATED

    def held_out_from(self, train: "DatasetFacts") -> bool:
        """Whether the validation split was decontaminated against the train split of ``train``."""
        return bool(self.manifest and train.manifest and self.manifest.held_out_from(train.manifest))

    def scored_samples(self, length: int, samples: int) -> int:
        """Return the samples that an evaluation scores; ``samples`` is ``data.validation_samples``, 0 for all."""
        available = max(1, (self.validation_tokens - 1) // length)
        return min(samples or available, available)

    def validation_digest(self, length: int, samples: int) -> str:
        """Return 16 hexadecimal digits that two evaluations share if they score the same tokens in the same contexts.

        ``samples`` is ``data.validation_samples``, 0 for all.
        """
        scored, available = self.scored_samples(length, samples), self.scored_samples(length, 0)
        # Tables of when some meant the first ones have other digests.
        spread = f" spread over {available}" if scored < available else ""
        return hashlib.sha256(f"{self.validation_split} {length} {scored}{spread}".encode()).hexdigest()[:16]


def read(path: str, stated: StatedCorpus | None) -> DatasetFacts:
    """Return the facts of the dataset at ``path``, or the stated ones where nothing is there.

    Raises DataError where there is neither, or the manifest is damaged.
    """
    if stated is not None and not (Path(path) / MANIFEST_NAME).is_file():
        sizes = (stated.vocabulary_size, stated.train_tokens, stated.validation_tokens)
        return DatasetFacts(*sizes, digest=STATED, tokenizer_sha256=STATED, validation_split=STATED, manifest=None)
    manifest = Manifest.load(path)
    validation = manifest.splits["validation"]
    excluded = manifest.decontamination
    parts = [dataclasses.asdict(validation), manifest.tokenizer.sha256, excluded and excluded.excluded.sha256]
    return DatasetFacts(
        vocabulary_size=manifest.vocabulary_size,
        train_tokens=manifest.splits["train"].tokens,
        validation_tokens=validation.tokens - (excluded.excluded_tokens if excluded else 0),
        digest=manifest.digest,
        tokenizer_sha256=manifest.tokenizer.sha256,
        validation_split=hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest(),
        manifest=manifest,
    )


def pair(path: str, validation: str | None, stated: StatedCorpus | None) -> tuple[DatasetFacts, DatasetFacts]:
    """Return the facts of ``data.path`` and of ``data.validation``.

    Raises DataError, as the run would, where their tokenizers differ.
    """
    train = read(path, stated)
    held_out = train if validation is None else read(validation, stated)
    if held_out.tokenizer_sha256 != train.tokenizer_sha256:
        raise DataError(
            f"data.validation {validation} was made with another tokenizer ({held_out.tokenizer_sha256[:12]}) than "
            f"data.path {path} ({train.tokenizer_sha256[:12]})"
        )
    return train, held_out
