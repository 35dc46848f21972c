"""TensorBoard curves of benchmark results, over the length L."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter


def write_curves(directory: Path, results: Sequence[dict[str, Any]]) -> None:
    """Write the results' scalars, one run per model and engine, with L as the step.

    Tags: ``step_ms/ARM``, ``tokens_per_second/ARM``, ``peak_MiB/ARM``, ``tflops/ARM``, ``part_ms/PART/ARM``,
    ``ratio/ARM_over_BASE`` and ``flops_ratio/ARM_over_BASE``.
    """
    writers: dict[str, SummaryWriter] = {}
    for result in results:
        run = f"{result['model']}-{result['engine']}"
        writer = writers.setdefault(run, SummaryWriter(str(directory / run)))
        for tag, value in _scalars(result).items():
            writer.add_scalar(tag, value, result["length"])
    for writer in writers.values():
        writer.close()


def _scalars(result: dict[str, Any]) -> dict[str, float]:
    scalars = {}
    for name, arm in result["arms"].items():
        scalars[f"step_ms/{name}"] = arm["step_seconds"]["median"] * 1000
        scalars[f"tokens_per_second/{name}"] = arm["tokens_per_second"]
        scalars[f"peak_MiB/{name}"] = arm["peak_bytes"] / 2**20
        scalars[f"tflops/{name}"] = arm["flops_per_second_and_device"] / 1e12
        for part, seconds in arm["part_seconds"].items():
            scalars[f"part_ms/{part}/{name}"] = seconds * 1000
    for pair in result["comparisons"]:
        name = f"{pair['arm']}_over_{pair['base']}"
        scalars[f"ratio/{name}"] = pair["paired_ratio"]["median"]
        scalars[f"flops_ratio/{name}"] = pair["flops_ratio"]
    return scalars
