"""Libraries that only some formats need."""

import importlib
from typing import Any

from card_scale.errors import DataError


def optional_library(name: str, path: str) -> Any:
    """Import a module where a file is met that cannot be read without it; DataError names both if it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise DataError(f"{path}: reading it needs {package}; install it with: pip install {package}") from error
