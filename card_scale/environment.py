"""Where and with what something ran: versions, commit and hardware, recorded beside every result."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path


def environment() -> dict:
    """Return versions, commit and hardware of this process."""
    # Only here: tools that never touch torch record their environment too.
    import torch

    packages = ("card_scale", "torch", "deepspeed", "megatron-core", "numpy", "sentencepiece", "webdataset")
    return {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
        "commit": _commit(),
        "command": sys.argv,
        "host": platform.node(),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "cpus": os.cpu_count(),
    }


def library_versions() -> dict[str, str]:
    """Return the versions that a checkpoint records."""
    return {name: _version(name) for name in ("torch", "deepspeed", "megatron-core")}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """Return the commit of the source tree, with "-dirty" where files differ; "unknown" outside or without git."""
    root = Path(__file__).resolve().parents[1]
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        described = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return described.stdout.strip() or "unknown"


def _processor() -> str:
    """Return the CPU's model name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
