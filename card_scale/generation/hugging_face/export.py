"""A checkpoint as a folder that transformers loads as ``LlamaForCausalLM``, without code of this project."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from card_scale.checkpoint.directory import checkpoint_at
from card_scale.checkpoint.reader import CheckpointReader
from card_scale.data.tokenizer import Tokenizer
from card_scale.errors import CheckpointError
from card_scale.files import removed_on_failure, write_json
from card_scale.generation.hugging_face.bundle import write_bundle
from card_scale.generation.hugging_face.tokenizer import write_tokenizer
from card_scale.generation.hugging_face.weights import names, to_llama
from card_scale.generation.load import described
from card_scale.generation.shape import DecoderShape

SHARD_BYTES = 5 * 10**9
"""Largest file of weights."""
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def export(checkpoint: Path, folder: Path, dtype: str = "float32", *, ema: bool = False) -> list[str]:
    """Write a checkpoint's model as a Hugging Face folder, a tensor at a time.

    Args:
        checkpoint: an ``iter_...`` directory.
        folder: to create; nothing may stand there.
        dtype: of the weights.
        ema: the moving average of the weights instead of the weights.

    Returns:
        The names of the files.

    Raises:
        CheckpointError: the checkpoint is unusable, its model is no causal decoder, or the folder exists.
    """
    if folder.exists():
        raise CheckpointError(f"{folder} exists; choose another folder or remove it")
    with CheckpointReader(checkpoint_at(checkpoint)) as reader:
        key, config, tokenizer, shape = described(reader, ema)
        if shape.block != 1 or shape.in_place or shape.two_streams:
            raise CheckpointError(
                f"checkpoint {checkpoint}: objective.name {config.objective.name} is no causal decoder, and the Llama "
                "architecture is; it cannot be exported"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.part-", dir=folder.parent))
        with removed_on_failure(temporary):
            temporary.chmod(0o755)
            shutil.copyfile(reader.tokenizer_path, temporary / tokenizer.file_name)
            write_tokenizer(temporary / tokenizer.file_name, temporary, shape.length)  # first: it may be refused
            _write_weights(_llama_weights(reader, shape, key, TYPES[dtype]), temporary)
            write_json(temporary / "config.json", _llama_config(shape, dtype, config.objective.decoders, tokenizer))
            write_json(temporary / "generation_config.json", _generation_config(tokenizer))
            write_bundle(temporary)
            temporary.rename(folder)
    return sorted(path.name for path in folder.iterdir())


def _llama_weights(
    reader: CheckpointReader, shape: DecoderShape, key: str, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    for name, theirs in names(shape).items():
        for their, part in zip(theirs, to_llama(name, reader.read(name, key), shape), strict=True):
            yield their, part.to(dtype).contiguous()


def _write_weights(weights: Iterator[tuple[str, Tensor]], folder: Path) -> None:
    """Write ``model.safetensors``, or numbered files of at most SHARD_BYTES with an index."""
    files: list[tuple[Path, list[str]]] = []
    waiting: dict[str, Tensor] = {}
    total = held = 0

    def flush() -> None:
        path = folder / f"part-{len(files)}"
        save_file(waiting, path, metadata={"format": "pt"})
        path.chmod(0o644)
        files.append((path, list(waiting)))
        waiting.clear()

    for name, weight in weights:
        if waiting and held + weight.nbytes > SHARD_BYTES:
            flush()
            held = 0
        waiting[name] = weight
        held += weight.nbytes
        total += weight.nbytes
    flush()
    if len(files) == 1:
        files[0][0].rename(folder / "model.safetensors")
        return
    index: dict[str, str] = {}
    for number, (path, held_names) in enumerate(files, start=1):
        final = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        path.rename(folder / final)
        index |= dict.fromkeys(held_names, final)
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})


def _llama_config(shape: DecoderShape, dtype: str, decoders: tuple[str, ...], tokenizer: Tokenizer) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_card.CardForCausalLM"},
        "model_type": "llama",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_size,
        "max_position_embeddings": shape.length,
        "rms_norm_eps": shape.norm_epsilon,
        # transformers 4 reads the one, transformers 5 the other.
        "rope_theta": shape.rotary_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rotary_base},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": shape.tied,
        # A text begins behind the end of another.
        "bos_token_id": tokenizer.eos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
        "mask_token_id": tokenizer.mask_id,
        "card_decoders": list(decoders),
        "torch_dtype": dtype,
    }


def _generation_config(tokenizer: Tokenizer) -> dict:
    eos, pad = tokenizer.eos_id, tokenizer.pad_id
    # Training forbids [MASK] as a prediction, so its logit says nothing.
    return {"bos_token_id": eos, "eos_token_id": eos, "pad_token_id": pad, "suppress_tokens": [tokenizer.mask_id]}
