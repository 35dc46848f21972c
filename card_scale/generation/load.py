"""From a checkpoint of any layout and engine to a model that decodes."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from card_scale import config as configs
from card_scale.checkpoint.directory import checkpoint_at
from card_scale.checkpoint.format import WEIGHT
from card_scale.checkpoint.reader import CheckpointReader
from card_scale.config import Config
from card_scale.data.tokenizer import Tokenizer
from card_scale.errors import CheckpointError, ConfigurationError, DataError
from card_scale.generation.model import InferenceModel
from card_scale.generation.shape import DecoderShape
from card_scale.generation.two_streams import TwoStreamModel
from card_scale.model.vocabulary import Vocabulary

EMA = "ema"
"""State key of the moving average of the weights."""


class TrainedModel(InferenceModel):
    """An inference model out of a checkpoint."""

    tokenizer: Tokenizer
    config: Config
    """Of the run that trained it."""

    def check_tokenizer(self, sha256: str, what: object) -> None:
        """Raise DataError unless ``what`` has the model's tokenizer."""
        if sha256 != self.tokenizer.sha256:
            raise DataError(
                f"{what} was made with tokenizer {sha256[:12]}, the model has {self.tokenizer.sha256[:12]}; build it "
                f"with the checkpoint's {self.tokenizer.file_name}"
            )


def load(
    checkpoint: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    *,
    ema: bool = False,
    compiled: bool = False,
) -> TrainedModel:
    """Load the model of a checkpoint, tensor by tensor.

    Args:
        checkpoint: an ``iter_...`` directory, written by any layout and engine.
        device: to put it on.
        dtype: of weights and activations; by default float32 on a CPU, elsewhere the run's ``train.precision``.
        ema: the moving average of the weights (``optimizer.ema``) instead of the weights.
        compiled: passes as one graph each, on a GPU as CUDA graphs. Each new shape takes its time once, which pays for
            long runs.

    Raises:
        CheckpointError: a checkpoint that is missing, incomplete or without what is asked for, or of an objective whose
            attention no decoder here can follow.
        ConfigurationError: a device that is not there.
    """
    directory = checkpoint_at(Path(checkpoint))
    device = usable_device(device)
    with CheckpointReader(directory) as reader:
        key, config, tokenizer, shape = described(reader, ema)
        if dtype is None:
            dtype = torch.bfloat16 if device.type != "cpu" and config.train.precision == "bf16" else torch.float32
        with torch.device("meta"):
            model = (TrainedTwoStreamModel if shape.two_streams else TrainedModel)(shape)
        read_weights(model.to_empty(device=device).to(dtype), reader, key)
    model.tokenizer, model.config = tokenizer, config
    model.objective, model.decoders = config.objective.name, config.objective.decoders
    if compiled:
        model.compile_passes()
    else:
        model.pack()
    return model


class TrainedTwoStreamModel(TwoStreamModel, TrainedModel):
    """The same of two streams."""


class Described(NamedTuple):
    """What a checkpoint says of its model."""

    key: str
    """State key of the weights that are asked for."""
    config: Config
    tokenizer: Tokenizer
    shape: DecoderShape


def described(reader: CheckpointReader, ema: bool) -> Described:
    """Read all of a checkpoint but its tensors. Raises CheckpointError as :func:`load` does."""
    directory, key = reader.directory, EMA if ema else WEIGHT
    if key not in reader.manifest.state_keys:
        raise CheckpointError(f"checkpoint {directory} holds no {key}: it was trained with optimizer.ema = 0")
    config = read_config(reader)
    tokenizer = Tokenizer.load(reader.tokenizer_path)
    if tokenizer.sha256 != reader.manifest.tokenizer_sha256:
        raise CheckpointError(
            f"checkpoint {directory}: {reader.tokenizer_path.name} is {tokenizer.sha256[:12]}, the manifest says "
            f"{reader.manifest.tokenizer_sha256[:12]}"
        )
    shape = decoder_shape(config, tokenizer)
    return Described(key, config, tokenizer, shape)


def usable_device(device: str | torch.device) -> torch.device:
    """The device of a name. Raises ConfigurationError for one that this machine does not have."""
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ConfigurationError(f"device is {device!r}; valid are cpu, cuda and cuda:N") from None
    if found.type not in ("cpu", "cuda"):
        raise ConfigurationError(f"device is {device!r}; valid are cpu, cuda and cuda:N")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(f"device is {device!r}, and torch sees {torch.cuda.device_count()} GPUs")
    return found


def read_config(reader: CheckpointReader) -> Config:
    """The configuration of the run that wrote the checkpoint. Raises CheckpointError where this version cannot."""
    try:
        return configs.read(reader.config_path, [])
    except ConfigurationError as error:
        raise CheckpointError(f"checkpoint {reader.directory}: {error}") from None


def decoder_shape(config: Config, tokenizer: Tokenizer) -> DecoderShape:
    """The sizes of a run's model. Raises CheckpointError for attention that is not block by block."""
    model, vocabulary = config.model, Vocabulary(tokenizer.vocabulary_size, tokenizer.mask_id)
    block = config.objective.attention.decoding_block(model.length)
    if block is None:
        raise CheckpointError(
            f"objective.name {config.objective.name} attends by {config.objective.attention}, which the inference "
            "model does not follow"
        )
    return DecoderShape(
        rows=vocabulary.padded,
        vocabulary=vocabulary.size,
        mask_id=vocabulary.mask_id,
        start_id=tokenizer.eos_id,
        layers=model.layers,
        hidden=model.hidden,
        heads=model.heads,
        kv_heads=model.key_value_heads,
        ffn=model.ffn,
        length=model.length,
        rotary_base=model.rotary_base,
        norm_epsilon=model.norm_epsilon,
        tied=model.tie_embeddings,
        block=block,
        in_place=config.objective.in_place,
        two_streams=config.objective.attention.has_query_stream,
    )


def read_weights(model: InferenceModel, reader: CheckpointReader, key: str) -> None:
    """Fill a model from a checkpoint. Raises CheckpointError for a parameter too many, too few or of another shape."""
    unused = set(reader.names())

    def read(name: str) -> Tensor:
        unused.discard(name)
        return reader.read(name, key)

    try:
        model.fill(read)
    except ValueError as error:
        raise CheckpointError(f"checkpoint {reader.directory} is not of its configuration: {error}") from None
    if unused:
        raise CheckpointError(
            f"checkpoint {reader.directory} is not of its configuration, which has no {', '.join(sorted(unused))}"
        )
