"""``run.init_from``: a new run that starts from another checkpoint's weights."""

from pathlib import Path

from card_scale.checkpoint.format import CheckpointManifest, read_manifest
from card_scale.config import Config
from card_scale.errors import CheckpointError, DataError
from card_scale.training.run_data import RunData


def find(config: Config, data: RunData) -> tuple[Path, CheckpointManifest] | None:
    """Return the checkpoint that a new run starts from, None where it starts from random weights.

    Needs no engine and no process group.

    Raises CheckpointError where it is missing or incomplete, DataError where it is of another tokenizer.
    """
    if config.run.init_from is None:
        return None
    path = Path(config.run.init_from)
    if not path.is_dir():
        raise CheckpointError(f"run.init_from {path}: there is no such directory")
    manifest = read_manifest(path)
    if manifest.tokenizer_sha256 != data.tokenizer_sha256:
        raise DataError(
            f"run.init_from {path} has tokenizer {manifest.tokenizer_sha256[:12]}, data.path was made with "
            f"{data.tokenizer_sha256[:12]}; build the data with the checkpoint's tokenizer.model"
        )
    return path, manifest
