"""Decoding on several devices: torch's own tensor parallelism, applied to the inference model."""

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from card_scale.errors import ConfigurationError
from card_scale.generation.model import InferenceModel


def parallelize(model: InferenceModel, mesh: DeviceMesh) -> None:
    """Split a model's layers over the ranks of a one-dimensional mesh, in place; every rank then decodes the same.

    Whole groups of heads go to a rank, each with its keys, values and cache. Embedding and norms stay whole, and so
    does the output matrix where it is the embedding.

    Raises:
        ConfigurationError: a number of ranks that divides the key and value heads or the feed-forward size not.
    """
    ranks, shape = mesh.size(), model.shape
    model.unpack()
    for name, size in (("model.kv_heads", shape.kv_heads), ("model.ffn", shape.ffn)):
        if size % ranks:
            raise ConfigurationError(f"{ranks} ranks do not divide {name} {size}")
    plan = {
        "attention.linear_qkv": ColwiseParallel(),
        "attention.linear_proj": RowwiseParallel(),
        "mlp.gate": ColwiseParallel(),
        "mlp.up": ColwiseParallel(),
        "mlp.linear_fc2": RowwiseParallel(),
    }
    for layer in model.layers:
        parallelize_module(layer, mesh, plan)
    if model.head is not None:
        parallelize_module(model, mesh, {"head": ColwiseParallel(output_layouts=Replicate())})
    model.kv_heads = shape.kv_heads // ranks
