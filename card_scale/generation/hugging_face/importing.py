"""A Llama-shaped Hugging Face folder as a checkpoint that training can start from (``run.init_from``)."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from card_scale.checkpoint.run_files import RunFiles
from card_scale.checkpoint.whole import write_whole
from card_scale.config import Config, ModelConfig
from card_scale.data.json_tokenizer import JsonTokenizer, pieces_of, read_tree
from card_scale.data.sentencepiece_tokenizer import SentencepieceTokenizer, open_model
from card_scale.data.tokenizer import Tokenizer
from card_scale.errors import CheckpointError, DataError
from card_scale.generation.hugging_face.weights import VOCABULARY_WEIGHTS, from_llama, llama_shapes, names
from card_scale.generation.load import decoder_shape

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "CardForCausalLM")
"""Those whose layers are this decoder's."""
LLAMA_EPSILON = 1e-6
"""transformers' default of rms_norm_eps."""
NEW = -1
"""In a table of rows: a token that the folder does not have."""


def import_folder(folder: Path, checkpoint: Path) -> Config:
    """Write a checkpoint with a folder's weights and tokenizer; return its configuration.

    Every piece keeps its id and its rows of embedding and output matrix; [MASK] and what else the tokenizer lacks join
    them above. A new row is the mean of all, which is what an unknown symbol is guessed to be.

    Raises CheckpointError for a folder that is no such model, DataError for a tokenizer that cannot be taken over.
    """
    settings = _read_json(folder / "config.json")
    _check_shape(folder, settings)
    sizes = _model_sizes(folder, settings)
    rows_there = _integer(folder, settings, "vocab_size")
    tokenizer, rows = take_tokenizer(folder, rows_there)
    config = Config(model=sizes)
    shape = decoder_shape(config, tokenizer)
    files = _weight_files(folder)
    expected = llama_shapes(shape, rows_there)
    _check_names(folder, set(files), set(expected), shape.tied)

    def read(name: str) -> Tensor:
        try:
            with safe_open(files[name], framework="pt") as file:
                found = file.get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{files[name]} is damaged: {error}") from None
        if tuple(found.shape) != expected[name]:
            raise CheckpointError(
                f"{folder}: {name} has shape {tuple(found.shape)}, by config.json it has {expected[name]}"
            )
        return found

    weights = {}
    for name, theirs in names(shape).items():
        weight = from_llama(name, read, theirs, shape)
        weights[name] = _moved(weight, rows, shape.rows) if name in VOCABULARY_WEIGHTS else weight
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        completed = Path(scratch) / tokenizer.file_name
        completed.write_bytes(tokenizer.content)
        run_files = RunFiles({"step": 0}, config.to_yaml(), completed)
        write_whole(checkpoint, weights, run_files, tokenizer.sha256, "Hugging Face folder")
    return config


def take_tokenizer(folder: Path, rows: int) -> tuple[Tokenizer, list[int]]:
    """Return (the folder's tokenizer with its ids, for each id the row of the weights).

    A symbol that the folder lacks has row NEW.

    Raises DataError for a folder without a tokenizer, or with one of more pieces than ``rows``.
    """
    path = _tokenizer_file(folder)
    tokenizer = Tokenizer.load(path)
    there = tokenizer.vocabulary_size - len(tokenizer.added_ids)
    if there > rows:
        raise DataError(f"{path} has {there} pieces, the weights have {rows} rows: they do not match")
    return tokenizer, [NEW if token in tokenizer.added_ids else token for token in range(tokenizer.vocabulary_size)]


def _tokenizer_file(folder: Path) -> Path:
    """The file that has all of a folder's tokens: a tokenizer.model lacks those that were added to it.

    Raises DataError where none has.
    """
    model, whole = (folder / kind.file_name for kind in (SentencepieceTokenizer, JsonTokenizer))
    if not model.is_file() and not whole.is_file():
        raise DataError(f"{model} is missing, and so is {whole.name}: a folder is imported with its tokenizer")
    pieces = open_model(model.read_bytes(), model).get_piece_size() if model.is_file() else 0
    known = pieces_of(read_tree(whole.read_bytes(), whole)) if whole.is_file() else {}
    in_whole = {token: name for name, token in known.items()}
    above = {token: name for token, name in (in_whole | _added_tokens(folder)).items() if token >= pieces}
    if model.is_file() and not above:
        return model
    for token, name in sorted(above.items()):
        if in_whole.get(token) != name:
            raise DataError(
                f"{folder}: {name!r} was added to the tokenizer as id {token}, which is in no {whole.name}; write one "
                "that has it and all others, with transformers' AutoTokenizer and its save_pretrained"
            )
    return whole


def _added_tokens(folder: Path) -> dict[int, str]:
    """The tokens, by id, that the files beside a tokenizer add to it."""
    path, sidecar = folder / "added_tokens.json", folder / "tokenizer_config.json"
    older = _read_json(path) if path.is_file() else {}
    newer = _read_json(sidecar).get("added_tokens_decoder") or {} if sidecar.is_file() else {}
    return {token: name for name, token in older.items()} | {int(i): token["content"] for i, token in newer.items()}


def _moved(weight: Tensor, rows: list[int], padded: int) -> Tensor:
    """The rows of a vocabulary's matrix, new ones their mean, zeros for the padding."""
    moved = torch.zeros(padded, weight.shape[1])
    mean = weight.mean(0)
    for token, row in enumerate(rows):
        moved[token] = mean if row == NEW else weight[row]
    return moved


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no readable configuration of a model: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {type(content).__name__}, not keys")
    return content


def _integer(folder: Path, settings: dict[str, Any], key: str, default: int | None = None) -> int:
    """A size. Raises CheckpointError for what is no positive integer."""
    value = settings.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{folder}/config.json: {key} is {value!r}; it must be a positive integer")
    return value


def _model_sizes(folder: Path, settings: dict[str, Any]) -> ModelConfig:
    heads = _integer(folder, settings, "num_attention_heads")
    kv_heads = _integer(folder, settings, "num_key_value_heads", heads)
    hidden = _integer(folder, settings, "hidden_size")
    head_size = _integer(folder, settings, "head_dim", hidden // heads)
    if head_size * heads != hidden or heads % kv_heads:
        raise CheckpointError(
            f"{folder}/config.json: hidden_size {hidden}, num_attention_heads {heads}, head_dim {head_size} and "
            f"num_key_value_heads {kv_heads} do not divide each other"
        )
    return ModelConfig(
        layers=_integer(folder, settings, "num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        ffn=_integer(folder, settings, "intermediate_size"),
        length=_integer(folder, settings, "max_position_embeddings"),
        tie_embeddings=bool(settings.get("tie_word_embeddings", False)),
        rotary_base=float(_rotary_base(settings)),
        norm_epsilon=float(settings.get("rms_norm_eps", LLAMA_EPSILON)),
    )


def _check_shape(folder: Path, settings: dict[str, Any]) -> None:
    """Raise CheckpointError where the model is not of the Llama shape."""
    found = settings.get("architectures") or ["model of no architecture"]
    if found[0] not in ARCHITECTURES:
        raise CheckpointError(f"{folder} is a {found[0]}; valid are {', '.join(ARCHITECTURES)}")
    rotary = settings.get("rope_scaling") or settings.get("rope_parameters") or {}
    window = settings.get("sliding_window")
    refused = {
        "hidden_act": (settings.get("hidden_act", "silu"), ("silu", "swish")),
        "attention_bias": (settings.get("attention_bias", False), (False,)),
        "mlp_bias": (settings.get("mlp_bias", False), (False,)),
        "rope_type": (rotary.get("rope_type", rotary.get("type", "default")), ("default",)),
    }
    for key, (value, valid) in refused.items():
        if value not in valid:
            raise CheckpointError(f"{folder}/config.json: {key} is {value!r}, which this decoder does not have")
    if window is not None and window < _integer(folder, settings, "max_position_embeddings"):
        raise CheckpointError(f"{folder}/config.json: sliding_window is {window}, which this decoder does not have")


def _check_names(folder: Path, there: set[str], expected: set[str], tied: bool) -> None:
    """Raise CheckpointError for tensors that are missing or that nothing would read."""
    missing = sorted(expected - there)
    # Tables that are computed, and an output matrix beside the embedding that it is.
    computed = {name for name in there if name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight")}
    unread = sorted(there - expected - computed)
    if missing or unread:
        what = f"holds no tensor {missing[0]}" if missing else f"holds {unread[0]}, of which config.json knows nothing"
        raise CheckpointError(f"{folder} {what}")


def _rotary_base(settings: dict[str, Any]) -> float:
    parameters = settings.get("rope_parameters") or {}
    return parameters.get("rope_theta", settings.get("rope_theta", 10_000.0))


def _weight_files(folder: Path) -> dict[str, Path]:
    """Tensor name → file."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                found |= dict.fromkeys(file.keys(), path)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is damaged: {error}") from None
    if not found:
        raise CheckpointError(f"{folder} holds no *.safetensors; convert other formats with transformers first")
    return found
