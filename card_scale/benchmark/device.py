"""What the device is capable of, next to which a step's speed is put, and the state it was in."""

import shutil
import subprocess

import torch

from card_scale.benchmark.clock import clock_of

_SIZES = {"cuda": 8192, "cpu": 1024}
_REPETITIONS = 10


def measured_gemm_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return FLOP/s of the fastest of ten square products (2 n^3 operations; n = 8192 on a GPU, 1024 on a CPU)."""
    size, clock = _SIZES[device.type], clock_of(device)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    spans = []
    for _ in range(1 + _REPETITIONS):
        begin = clock.stamp()
        left @ right
        spans.append((begin, clock.stamp()))
    clock.wait()
    return 2.0 * size**3 / min(clock.seconds(begin, end) for begin, end in spans[1:])


def gpu_state(device: torch.device) -> str | None:
    """Return clocks, power and temperature of the GPUs as nvidia-smi states them, None on a CPU."""
    if device.type != "cuda":
        return None
    if shutil.which("nvidia-smi") is None:
        return "unknown: no nvidia-smi"
    query = "--query-gpu=clocks.sm,clocks.mem,power.draw,power.limit,temperature.gpu"
    shown = subprocess.run(["nvidia-smi", query, "--format=csv"], capture_output=True, text=True, check=False)
    return shown.stdout.strip()
