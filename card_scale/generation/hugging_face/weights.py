"""The same weights by two names: the checkpoint's and those of transformers' Llama."""

from collections.abc import Callable

import torch
from torch import Tensor

from card_scale.generation.shape import DecoderShape

WHOLE = {
    "embedding.weight": "model.embed_tokens.weight",
    "final_norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
IN_LAYER = {
    "attention_norm.weight": ("input_layernorm.weight",),
    "attention.linear_qkv.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "attention.linear_proj.weight": ("self_attn.o_proj.weight",),
    "mlp_norm.weight": ("post_attention_layernorm.weight",),
    "mlp.linear_fc1.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "mlp.linear_fc2.weight": ("mlp.down_proj.weight",),
}
VOCABULARY_WEIGHTS = ("embedding.weight", "head.weight")
"""Those with a row for each token."""


def names(shape: DecoderShape) -> dict[str, tuple[str, ...]]:
    """Whole-model name → names in a Llama folder, in the model's order."""
    found: dict[str, tuple[str, ...]] = {"embedding.weight": (WHOLE["embedding.weight"],)}
    for layer in range(shape.layers):
        for name, theirs in IN_LAYER.items():
            found[f"layers.{layer}.{name}"] = tuple(f"model.layers.{layer}.{their}" for their in theirs)
    found["final_norm.weight"] = (WHOLE["final_norm.weight"],)
    if not shape.tied:
        found["head.weight"] = (WHOLE["head.weight"],)
    return found


def llama_shapes(shape: DecoderShape, rows: int) -> dict[str, tuple[int, ...]]:
    """Name in a Llama folder → shape, of a vocabulary with so many rows."""
    keys = shape.kv_heads * shape.head_size
    of_layer = {
        "input_layernorm.weight": (shape.hidden,),
        "self_attn.q_proj.weight": (shape.hidden, shape.hidden),
        "self_attn.k_proj.weight": (keys, shape.hidden),
        "self_attn.v_proj.weight": (keys, shape.hidden),
        "self_attn.o_proj.weight": (shape.hidden, shape.hidden),
        "post_attention_layernorm.weight": (shape.hidden,),
        "mlp.gate_proj.weight": (shape.ffn, shape.hidden),
        "mlp.up_proj.weight": (shape.ffn, shape.hidden),
        "mlp.down_proj.weight": (shape.hidden, shape.ffn),
    }
    found = {f"model.layers.{layer}.{name}": size for layer in range(shape.layers) for name, size in of_layer.items()}
    found |= {WHOLE["embedding.weight"]: (rows, shape.hidden), WHOLE["final_norm.weight"]: (shape.hidden,)}
    return found if shape.tied else found | {WHOLE["head.weight"]: (rows, shape.hidden)}


def to_llama(name: str, weight: Tensor, shape: DecoderShape) -> list[Tensor]:
    """Cut a whole parameter into those that stand for it in a Llama folder, in the order of :func:`names`."""
    if name in VOCABULARY_WEIGHTS:
        return [weight[: shape.vocabulary]]
    if name.endswith("linear_qkv.weight"):
        groups = weight.view(shape.kv_heads, -1, shape.head_size, shape.hidden)
        queries = shape.heads // shape.kv_heads
        return [part.reshape(-1, shape.hidden) for part in groups.split((queries, 1, 1), 1)]
    if name.endswith("linear_fc1.weight"):
        return list(weight.chunk(2))
    return [weight]


def from_llama(name: str, read: Callable[[str], Tensor], theirs: tuple[str, ...], shape: DecoderShape) -> Tensor:
    """Join what :func:`to_llama` cuts; ``read`` gives a tensor of the folder by its name. Float32."""
    parts = [read(their).float() for their in theirs]
    if name.endswith("linear_qkv.weight"):
        groups = [part.view(shape.kv_heads, -1, shape.head_size, shape.hidden) for part in parts]
        return torch.cat(groups, 1).reshape(-1, shape.hidden)
    return torch.cat(parts) if len(parts) > 1 else parts[0]
