"""What a run says on the console: a line about each logged update and each evaluation."""

from collections.abc import Mapping
from typing import Any

from card_scale.units import duration


def training_line(
    record: Mapping[str, Any],
    *,
    total_steps: int,
    is_bound: bool,
    seconds_left: float,
    refused: int = 0,
    not_finite: int = 0,
) -> str:
    """Return the line about a training ``record`` (keys of ``metrics.jsonl``).

    Args:
        record: of the update.
        total_steps: of the run.
        is_bound: whether the objective's likelihood is a bound, and its loss an estimate of it.
        seconds_left: until the end of the run.
        refused: updates since the last line that were not applied.
        not_finite: those of them that were no spikes.
    """
    parts = [_step(record, total_steps)]
    if "loss_interval" in record:
        parts.append(_loss("loss", record["loss_interval"], is_bound))
    parts.append(f"{record['tokens_per_second']:,.0f} tokens/s")
    if "tflops_per_device" in record:
        parts.append(f"{record['tflops_per_device']:.1f} TFLOP/s/GPU")
    if "mfu_causal" in record:
        parts.append(f"MFU {record['mfu_causal']:.1%}")
    if "memory/peak_gib" in record:
        parts.append(f"{record['memory/peak_gib']:.1f} GiB")
    parts.append(f"epoch {record['epoch']:.3f}")
    if "grad_norm" in record:
        parts.append(f"grad norm {record['grad_norm']:.3f}")
    parts += [f"lr {record['lr']:.2e}", f"ETA {duration(seconds_left)}"]
    if refused:
        parts.append(f"{refused} updates not applied, {not_finite} of them not finite")
    return " | ".join(parts)


def evaluation_line(record: Mapping[str, Any], *, total_steps: int, seconds: float) -> str:
    """Return the line about an evaluation ``record`` that took so many seconds."""
    is_bound = "bound" in record
    error = record.get("validation_nll_standard_error")
    parts = [_step(record, total_steps), _loss("validation loss", record["validation_nll"], is_bound, error)]
    relation, mark = ("<= ", " (bound)") if is_bound else ("", "")
    parts.append(f"perplexity {relation}{record['validation_perplexity']:.5g}{mark}")
    others = {"training samples": "train_nll", "averaged weights": "ema/validation_nll"}
    parts += [_loss(name, record[key], is_bound) for name, key in others.items() if key in record]
    return " | ".join([*parts, f"took {duration(seconds)}"])


def _step(record: Mapping[str, Any], total_steps: int) -> str:
    return f"step {record['step']:{len(str(total_steps))}d}/{total_steps}"


def _loss(name: str, value: float, is_bound: bool, standard_error: float | None = None) -> str:
    error = "" if standard_error is None else f" ± {standard_error:.3f}"
    return f"{name} <= {value:.3f}{error} (bound)" if is_bound else f"{name} {value:.3f}{error}"
