"""What devices can do by their data sheets, and a run's share of it."""

import re

from card_scale.cost.flops import ModelFlops

# Dense bfloat16 peak in FLOP/s by device, from the vendors' data sheets (half of the figures with 2:4 sparsity).
# Matched in this order as whole words of the device's name, so the variants stand before the plain names.
_PEAKS = (
    (r"H100 PCIe", 756e12),
    (r"H100 NVL", 835e12),
    (r"H200 NVL", 835e12),
    (r"(H100|H200|H800|GH200)", 989.4e12),
    (r"GB200", 2500e12),
    (r"B200", 2250e12),
    (r"(A100|A800)", 312e12),
    (r"H20", 148e12),
    (r"L40S", 362e12),
    (r"L4", 121e12),
    (r"A40", 149.7e12),
    (r"A30", 165e12),
)


def peak_flops(device_name: str) -> float | None:
    """Dense bfloat16 peak in FLOP/s of a device, by the name that torch.cuda.get_device_name returns.

    None for a device that is not in the table, for a CPU, and for a MIG slice, whose share of the peak is not known.
    """
    if re.search(r"\bMIG\b", device_name):
        return None
    return next((peak for pattern, peak in _PEAKS if re.search(rf"\b{pattern}\b", device_name)), None)


def devices_with_peaks() -> list[str]:
    """Return the names that :func:`peak_flops` knows."""
    return [name for pattern, _ in _PEAKS for name in pattern.strip("()").split("|")]


def throughput_fields(
    flops: ModelFlops, *, tokens_per_second: float, devices: int, peak: float | None
) -> dict[str, float]:
    """Fields of a training record: model TFLOP/s per device, and its share of ``peak`` where one is known.

    ``tokens_per_second`` is global. Returns ``tflops_per_device`` (causal convention), and with a peak ``mfu_causal``
    and ``mfu_full`` as fractions of 1.
    """
    tokens = tokens_per_second / devices
    fields = {"tflops_per_device": flops.causal * tokens / 1e12}
    if peak is not None:
        fields["mfu_causal"] = flops.causal * tokens / peak
        fields["mfu_full"] = flops.full * tokens / peak
    return fields
