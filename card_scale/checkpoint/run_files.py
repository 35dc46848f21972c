"""The small files that a checkpoint keeps beside its tensors, so that it can be read without its run."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from card_scale.checkpoint.format import CONFIG_NAME, STATE_NAME, TOKENIZER_STEM, StoredFile


@dataclass(frozen=True)
class RunFiles:
    """What a run adds to its checkpoints."""

    state: dict[str, Any]
    """Small and JSON: step, cursor, and what the objective has found."""
    config_yaml: str
    """The resolved configuration."""
    tokenizer: Path
    """The tokenizer's model file."""

    def write(self, directory: Path) -> dict[str, StoredFile]:
        """Write them into a checkpoint, durably; return them by name."""
        (directory / STATE_NAME).write_text(json.dumps(self.state, indent=1), encoding="utf-8")
        (directory / CONFIG_NAME).write_text(self.config_yaml, encoding="utf-8")
        tokenizer = TOKENIZER_STEM + self.tokenizer.suffix
        shutil.copyfile(self.tokenizer, directory / tokenizer)
        return {name: StoredFile.synced(directory / name) for name in (STATE_NAME, CONFIG_NAME, tokenizer)}
