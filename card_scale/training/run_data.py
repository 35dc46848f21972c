"""The datasets of a run and the batches that its ranks read of them."""

import dataclasses

import torch.distributed as dist

from card_scale.config import Config
from card_scale.data import order
from card_scale.data.loader import EvaluationBatches, GlobalBatchLoader
from card_scale.data.stream import PackedStream
from card_scale.distributed import process_groups
from card_scale.distributed.device import current_device
from card_scale.errors import DataError
from card_scale.model.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class RunData:
    """The training and validation streams of a run."""

    train: PackedStream
    validation: PackedStream

    @property
    def vocabulary(self) -> Vocabulary:
        """Of the tokenizer that both were made with."""
        return Vocabulary(self.train.vocabulary_size, self.train.manifest.special_ids["mask"])

    @property
    def tokenizer_sha256(self) -> str:
        """Hash of that tokenizer's model file."""
        return self.train.manifest.tokenizer.sha256

    def describe_validation(self, asked: int) -> str:
        """Say how many validation samples an evaluation reads; ``asked`` is ``data.validation_samples``, 0 for all."""
        held = self.validation.sample_count
        if asked > held:
            return f"warning: data.validation_samples is {asked:,}, but there are only {held:,}: all are evaluated"
        return f"validation: {asked or held:,} of {held:,} samples"

    def describe_held_out(self) -> str:
        """Say whether the validation documents were compared with the training documents."""
        if not self.validation.manifest.held_out_from(self.train.manifest):
            return "held-out documents: never compared with the training documents (tools/data.py decontaminate)"
        record = self.validation.manifest.decontamination
        assert record is not None  # held_out_from
        return f"held-out documents: decontaminated, {record.excluded_documents} left out"


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
    data = RunData(train, validation)
    data.vocabulary.check_divisible(config.parallel.tensor)
    return data


def with_mask_id(config: Config, data: RunData) -> Config:
    """The configuration whose objective knows [MASK] by its id in the data, which no file of a run states."""
    objective = dataclasses.replace(config.objective, mask_id=data.vocabulary.mask_id)
    return dataclasses.replace(config, objective=objective)


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
        pinned=current_device().type == "cuda",
    )


def open_validation(config: Config, data: RunData) -> EvaluationBatches:
    """Return this rank's share of ``data.validation_samples`` validation samples."""
    return _evaluation_batches(config, data.validation, "validation", config.data.validation_samples or None)


def open_train_samples(config: Config, data: RunData) -> EvaluationBatches:
    """Return this rank's share of ``data.train_samples`` training samples, for evaluation."""
    return _evaluation_batches(config, data.train, "train", config.data.train_samples)


def _evaluation_batches(config: Config, stream: PackedStream, split: str, samples: int | None) -> EvaluationBatches:
    return EvaluationBatches(
        stream,
        order.evaluated_samples(split, samples, stream.sample_count),
        global_batch=config.train.global_batch,
        micro_batch=config.train.micro_batch,
        data_parallel_rank=process_groups.data_rank(),
        data_parallel_size=dist.get_world_size(process_groups.data_group()),
    )
