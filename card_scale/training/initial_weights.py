"""``run.init_from``: a new run that starts from another checkpoint's weights."""

from pathlib import Path

from card_scale import config as configs
from card_scale.checkpoint.directory import checkpoint_at
from card_scale.checkpoint.format import CheckpointManifest, read_manifest
from card_scale.checkpoint.reader import CheckpointReader
from card_scale.config import Config
from card_scale.errors import CheckpointError, DataError
from card_scale.training.run_data import RunData

SAME = ("layers", "hidden", "heads", "key_value_heads", "ffn", "tie_embeddings", "rotary_base", "norm_epsilon")
"""What makes the weights mean the same function; the length may change."""


def find(config: Config, data: RunData) -> tuple[Path, CheckpointManifest] | None:
    """Return the checkpoint that a new run starts from, None where it starts from random weights.

    Needs no engine and no process group.

    Raises CheckpointError where it is missing, incomplete or of another model, DataError where it is of another
    tokenizer.
    """
    if config.run.init_from is None:
        return None
    path = checkpoint_at(Path(config.run.init_from), "run.init_from")
    manifest = read_manifest(path)
    theirs = configs.read(CheckpointReader(path, manifest).config_path, []).model
    for key in SAME:
        there, here = getattr(theirs, key), getattr(config.model, key)
        if there != here:
            raise CheckpointError(
                f"run.init_from {path} is of another model: model.{key.replace('key_value', 'kv')} is {there} there, "
                f"here {here}"
            )
    if manifest.tokenizer_sha256 != data.tokenizer_sha256:
        raise DataError(
            f"run.init_from {path} has tokenizer {manifest.tokenizer_sha256[:12]}, data.path was made with "
            f"{data.tokenizer_sha256[:12]}; build the data with the checkpoint's tokenizer"
        )
    return path, manifest
