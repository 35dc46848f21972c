"""A Llama-shaped Hugging Face folder as a checkpoint that training can start from (``run.init_from``)."""

import contextlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from sentencepiece import sentencepiece_model_pb2
from torch import Tensor

from card_scale.checkpoint.format import TOKENIZER_NAME
from card_scale.checkpoint.run_files import RunFiles
from card_scale.checkpoint.whole import write_whole
from card_scale.config import Config, ModelConfig
from card_scale.data.tokenizer import EOS_ID, MASK_ID, MASK_PIECE, SPECIAL_IDS, UNK_ID, Tokenizer
from card_scale.errors import CheckpointError, DataError
from card_scale.files import write_atomically
from card_scale.generation.hugging_face.weights import VOCABULARY_WEIGHTS, from_llama, names
from card_scale.generation.load import decoder_shape
from card_scale.model.vocabulary import Vocabulary

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")
"""Those whose layers are this decoder's."""
NEW = -1
"""In a table of rows: a token that the folder does not have."""


def import_folder(folder: Path, checkpoint: Path) -> Config:
    """Write a checkpoint with a folder's weights and tokenizer; return its configuration.

    The tokenizer's special symbols move to the ids of this project and [MASK] joins them; the rows of embedding and
    output matrix move with them, so that each piece keeps its logits. A new row is the mean of all, which is what an
    unknown symbol is guessed to be.

    Raises CheckpointError for a folder that is no such model, DataError for a tokenizer that cannot be taken over.
    """
    settings = _read_json(folder / "config.json")
    _check_shape(folder, settings)
    tokenizer_model, rows = take_tokenizer(folder / TOKENIZER_NAME, settings["vocab_size"])
    model = ModelConfig(
        layers=settings["num_hidden_layers"],
        hidden=settings["hidden_size"],
        heads=settings["num_attention_heads"],
        kv_heads=settings.get("num_key_value_heads") or settings["num_attention_heads"],
        ffn=settings["intermediate_size"],
        length=settings["max_position_embeddings"],
        tie_embeddings=settings.get("tie_word_embeddings", False),
        rotary_base=float(_rotary_base(settings)),
        norm_epsilon=settings["rms_norm_eps"],
    )
    config = Config(model=model)
    vocabulary = Vocabulary(len(rows), MASK_ID)
    shape = decoder_shape(config, vocabulary)
    files = _weight_files(folder)

    def read(name: str) -> Tensor:
        if name not in files:
            raise CheckpointError(f"{folder} holds no tensor {name}")
        with safe_open(files[name], framework="pt") as file:
            return file.get_tensor(name)

    weights = {}
    for name, theirs in names(shape).items():
        weight = from_llama(name, read, theirs, shape)
        weights[name] = _moved(weight, rows, vocabulary.padded) if name in VOCABULARY_WEIGHTS else weight
    converted = checkpoint.with_name(f"{checkpoint.name}.{TOKENIZER_NAME}")
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(converted, tokenizer_model)
    try:
        tokenizer = Tokenizer.load(converted)
        run_files = RunFiles({"step": 0}, config.to_yaml(), converted)
        write_whole(checkpoint, weights, run_files, tokenizer.sha256, "Hugging Face folder")
    finally:
        converted.unlink()
    return config


def take_tokenizer(path: Path, rows: int) -> tuple[bytes, list[int]]:
    """Return (sentencepiece model with this project's special ids, for each of its ids the row of the weights).

    One of this project stays as it is. A symbol that the folder lacks has row NEW. Text is encoded into the same
    pieces, but that no space is put before it and none is dropped.

    Raises DataError for a folder without a sentencepiece model, or one that cannot be changed so.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing: only folders with a sentencepiece tokenizer can be imported")
    with contextlib.suppress(DataError):
        # One of this project, as an exported folder has it.
        return path.read_bytes(), list(range(Tokenizer.load(path).vocabulary_size))
    model = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    if len(model.pieces) > rows:
        raise DataError(f"{path} has {len(model.pieces)} pieces, the weights have {rows} rows: they do not match")
    if sum(piece.type == kinds.BYTE for piece in model.pieces) != 256:
        raise DataError(f"{path} has no byte fallback, so it could not encode all text")
    spec = model.trainer_spec
    known = {"pad": spec.pad_id, "unk": spec.unk_id, "bos": spec.bos_id, "eos": spec.eos_id}
    by_name = {piece.piece: token for token, piece in enumerate(model.pieces)}
    known["mask"] = by_name.get(MASK_PIECE, NEW)
    special = [known[name] for name, _ in sorted(SPECIAL_IDS.items(), key=lambda item: item[1])]
    order = special + [token for token in range(len(model.pieces)) if token not in special]
    pieces = [kinds.FromString(model.pieces[token].SerializeToString()) if token >= 0 else kinds() for token in order]
    for name, token in SPECIAL_IDS.items():
        pieces[token].type = kinds.UNKNOWN if token == UNK_ID else kinds.CONTROL
        if known[name] < 0:
            pieces[token].piece = MASK_PIECE if name == "mask" else f"<{name}>"
            pieces[token].score = 0.0
    del model.pieces[:]
    model.pieces.extend(pieces)
    spec.pad_id, spec.unk_id, spec.bos_id, spec.eos_id = (SPECIAL_IDS[name] for name in ("pad", "unk", "bos", "eos"))
    spec.pad_piece, spec.eos_piece = pieces[SPECIAL_IDS["pad"]].piece, pieces[EOS_ID].piece
    spec.unk_piece, spec.bos_piece = pieces[UNK_ID].piece, pieces[SPECIAL_IDS["bos"]].piece
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    return model.SerializeToString(), order


def _moved(weight: Tensor, rows: list[int], padded: int) -> Tensor:
    """The rows of a vocabulary's matrix in the new order, new ones their mean, zeros for the padding."""
    moved = torch.zeros(padded, weight.shape[1])
    mean = weight.mean(0)
    for token, row in enumerate(rows):
        moved[token] = mean if row == NEW else weight[row]
    return moved


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no readable configuration of a model: {error}") from None


def _check_shape(folder: Path, settings: dict[str, Any]) -> None:
    """Raise CheckpointError where the model is not of the Llama shape."""
    found = (settings.get("architectures") or ["none"])[0]
    if found not in ARCHITECTURES:
        raise CheckpointError(f"{folder} is a {found}; valid are {', '.join(ARCHITECTURES)}")
    scaling = settings.get("rope_scaling") or settings.get("rope_parameters") or {}
    window = settings.get("sliding_window")
    head = settings.get("head_dim") or settings["hidden_size"] // settings["num_attention_heads"]
    refused = {
        "hidden_act": settings.get("hidden_act", "silu") not in ("silu", "swish"),
        "attention_bias": settings.get("attention_bias", False),
        "mlp_bias": settings.get("mlp_bias", False),
        "rope_parameters": scaling.get("rope_type", scaling.get("type", "default")) != "default",
        "sliding_window": window is not None and window < settings["max_position_embeddings"],
        "head_dim": head * settings["num_attention_heads"] != settings["hidden_size"],
    }
    for key, is_refused in refused.items():
        if is_refused:
            value = settings.get(key, scaling)
            raise CheckpointError(f"{folder}/config.json: {key} is {value!r}, which this decoder does not have")


def _rotary_base(settings: dict[str, Any]) -> float:
    parameters = settings.get("rope_parameters") or {}
    return parameters.get("rope_theta", settings.get("rope_theta", 10_000.0))


def _weight_files(folder: Path) -> dict[str, Path]:
    """Tensor name → file."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    if not found:
        raise CheckpointError(f"{folder} holds no *.safetensors; convert other formats with transformers first")
    return found
