"""The datasets of a run and the batches that its ranks read of them."""

import dataclasses

import torch.distributed as dist

from card_scale.config import Config
from card_scale.data.loader import EvaluationBatches, GlobalBatchLoader
from card_scale.data.stream import PackedStream
from card_scale.data.tokenizer import MASK_ID
from card_scale.distributed import process_groups
from card_scale.errors import DataError
from card_scale.model.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class RunData:
    """The training and validation streams of a run."""

    train: PackedStream
    validation: PackedStream
    asked_samples: int = 0
    """``data.validation_samples``."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Of the tokenizer that both were made with."""
        return Vocabulary(self.train.vocabulary_size, MASK_ID)

    @property
    def tokenizer_sha256(self) -> str:
        """Hash of that tokenizer's model file."""
        return self.train.manifest.tokenizer.sha256

    def describe_held_out(self) -> str:
        """Say whether the validation documents were compared with the training documents, and whether they are fewer
        than is asked for."""
        fewer = ""
        if self.asked_samples > self.validation.sample_count:
            fewer = (
                f"; there are {self.validation.sample_count:,} validation samples, data.validation_samples asks for "
                f"{self.asked_samples:,}"
            )
        if not self.validation.manifest.held_out_from(self.train.manifest):
            return (
                f"held-out documents: never compared with the training documents (tools/data.py decontaminate){fewer}"
            )
        record = self.validation.manifest.decontamination
        assert record is not None  # held_out_from
        return f"held-out documents: decontaminated, {record.excluded_documents} left out{fewer}"


def open_data(config: Config) -> RunData:
    """Open both streams.

    Raises DataError for anything missing, damaged or made with different tokenizers, and ConfigurationError for a
    vocabulary that ``parallel.tensor`` does not divide.
    """
    train = PackedStream(config.data.path, "train", config.run.seed, config.model.length, config.data.unique_tokens)
    held_out = config.data.validation or config.data.path
    validation = PackedStream(held_out, "validation", config.run.seed, config.model.length)
    if validation.manifest.tokenizer.sha256 != train.manifest.tokenizer.sha256:
        raise DataError(
            f"data.validation {held_out} was made with another tokenizer "
            f"({validation.manifest.tokenizer.sha256[:12]}) than data.path {config.data.path} "
            f"({train.manifest.tokenizer.sha256[:12]})"
        )
    data = RunData(train, validation, config.data.validation_samples)
    data.vocabulary.check_divisible(config.parallel.tensor)
    return data


def open_loader(config: Config, data: RunData) -> GlobalBatchLoader:
    """Return this rank's training batches."""
    return GlobalBatchLoader(
        data.train,
        global_batch=config.train.global_batch,
        micro_batch=config.train.micro_batch,
        data_parallel_rank=process_groups.data_rank(),
        data_parallel_size=dist.get_world_size(process_groups.data_group()),
        seed=config.run.seed,
        reshuffle=config.data.reshuffle,
        skip_damaged=config.data.skip_damaged > 0,
    )


def open_validation(config: Config, data: RunData) -> EvaluationBatches:
    """Return this rank's validation batches."""
    return _evaluation_batches(config, data.validation, config.data.validation_samples or None)


def open_train_samples(config: Config, data: RunData) -> EvaluationBatches:
    """Return this rank's share of the first ``data.train_samples`` training samples, for evaluation."""
    return _evaluation_batches(config, data.train, config.data.train_samples)


def _evaluation_batches(config: Config, stream: PackedStream, samples: int | None) -> EvaluationBatches:
    return EvaluationBatches(
        stream,
        global_batch=config.train.global_batch,
        micro_batch=config.train.micro_batch,
        data_parallel_rank=process_groups.data_rank(),
        data_parallel_size=dist.get_world_size(process_groups.data_group()),
        samples=samples,
    )
