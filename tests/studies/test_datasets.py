"""What a study takes from a dataset's manifest where documents are left out of validation."""

import dataclasses

from card_scale.data.manifest import Decontamination, FileRecord, Manifest
from card_scale.studies import datasets


def excluding(dataset, directory, sha256, tokens=17):
    """Save the dataset's manifest, with a document of so many tokens left out, into a new directory; return its path.

    The list of documents itself is not written: facts are read from the manifest alone.
    """
    directory.mkdir()
    excluded = FileRecord("excluded-validation.npy", 136, sha256)
    record = Decontamination(13, 0.5, (), 9, 90, 8, 0, {}, 1, tokens, excluded)
    dataclasses.replace(Manifest.load(dataset), decontamination=record).save(directory)
    return str(directory)


def test_tokens_that_are_left_out_are_not_evaluated(dataset, tmp_path):
    whole = datasets.read(str(dataset), None)
    left = datasets.read(excluding(dataset, tmp_path / "one", "a" * 64), None)
    assert left.validation_tokens == whole.validation_tokens - 17
    assert left.train_tokens == whole.train_tokens
    assert left.scored_samples(16, 0) == (whole.validation_tokens - 18) // 16


def test_other_documents_left_out_are_another_validation_set(dataset, tmp_path):
    """As many documents and tokens, but not the same."""
    found = [datasets.read(str(dataset), None)]
    found += [datasets.read(excluding(dataset, tmp_path / digit, digit * 64), None) for digit in "ab"]
    assert len({facts.validation_split for facts in found}) == 3
    assert len({facts.validation_digest(16, 8) for facts in found}) == 3


def test_some_validation_samples_are_other_text_in_a_larger_split(dataset):
    """They are spread over it."""
    facts = datasets.read(str(dataset), None)
    larger = facts._replace(validation_tokens=facts.validation_tokens + 16)
    assert facts.validation_digest(16, 8) != larger.validation_digest(16, 8)
    assert facts.validation_digest(16, 0) == facts.validation_digest(16, 10**9) != facts.validation_digest(16, 8)
