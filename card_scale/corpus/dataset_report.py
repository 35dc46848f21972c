"""What to know of a corpus before it is repeated: whether validation is clean, and how much of train nearly repeats."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from card_scale.corpus.near_duplicates import NGRAM, SIMILARITY, NearDuplicates, near_duplicates
from card_scale.corpus.summary import describe
from card_scale.data.manifest import Manifest


@dataclass(frozen=True)
class DatasetReport:
    """A dataset, and the near-duplicate rates of those of its splits that were compared."""

    directory: Path
    against: Path | None  # dataset whose train split validation was compared with, None for its own
    train: NearDuplicates | None
    validation: NearDuplicates | None

    def text(self) -> str:
        """The report as lines of text."""
        lines = [describe(self.directory)]
        train = f"train of {self.against}" if self.against else "train"
        for split, rate, other in (
            ("train", self.train, "an earlier document of train"),
            ("validation", self.validation, f"a document of {train}"),
        ):
            if rate is not None:
                error = f" +- {rate.standard_error:.2%}" if rate.standard_error else ""
                lines.append(
                    f"near duplicates in {split}: {rate.share:.2%}{error} of documents, {rate.token_share:.2%} of "
                    f"tokens; {rate.duplicates} of {rate.compared} that were compared ({rate.documents} in all) have "
                    f"an estimated Jaccard index of {NGRAM}-grams of at least {SIMILARITY} to {other}"
                )
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values; ``decontamination`` is null where it was never done."""
        manifest = Manifest.load(self.directory)
        return {
            "dataset": manifest.digest,
            "train": manifest.splits["train"].digest,
            "against": Manifest.load(self.against).splits["train"].digest if self.against else None,
            "decontamination": asdict(manifest.decontamination) if manifest.decontamination else None,
            "near_duplicates": {
                name: asdict(rate) if rate else None
                for name, rate in (("train", self.train), ("validation", self.validation))
            },
        }


def report(directory: Path, against: Path | None, sample: int, workers: int, progress: bool = False) -> DatasetReport:
    """Measure the near-duplicate rates of a dataset.

    Args:
        directory: dataset directory.
        against: dataset whose train split the validation split is compared with, and nothing else; None for the
            dataset's own, and train within itself.
        sample: documents of each split that are asked about, at most.
        workers: processes; has no influence on the result.
        progress: show on stderr how far it is.

    Raises:
        DataError: missing or damaged files, or different tokenizers.
    """
    splits = Manifest.load(directory).splits
    rates = {
        name: near_duplicates(directory, name, against, sample, workers, progress)
        for name in (("validation",) if against else ("train", "validation"))
        if splits[name].documents
    }
    return DatasetReport(directory, against, rates.get("train"), rates.get("validation"))
