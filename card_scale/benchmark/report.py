"""The step-latency benchmark's results for people (tables) and for programs (JSON)."""

import json
import re
from collections.abc import Sequence
from typing import Any

from card_scale.benchmark.instruments import PARTS


def tables(result: dict[str, Any]) -> str:
    """Return one case's result as text of at most 120 columns (arms of long names may need more)."""
    config = result["config"]
    model, train = config["model"], config["train"]
    compiled = ", compiled layers" if result["compiled_layers"] else ""
    lines = [
        f"== {result['model']}: {model['layers']} x {model['hidden']}, L {result['length']}, {result['global_batch']} "
        f"sequences a step, {train['precision']}{compiled}; {result['engine']}, {result['layout']} ==",
        *_arms(result, result),
        "",
        "where a step's time goes, ms (medians of steps with stamps inside; sum: parts over undisturbed step)",
        *(["attention is part of the compiled layers"] if compiled else []),
        *_parts(result),
    ]
    if result["comparisons"]:
        lines += ["", *_comparisons(result)]
    best = result["best_micro_batch"]
    if best:
        cap = best["cap_bytes"] / 2**30
        lines += ["", f"largest micro-batch under {cap:.3g} GiB, {best['global_batch']} sequences a step"]
        lines += [*_arms(best, result), *_ratios(best)]
    return "\n".join(lines)


def _arms(result: dict[str, Any], hardware: dict[str, Any]) -> list[str]:
    peak = hardware["peak_flops_per_second"]
    head = ["arm", "micro", "step ms", "quartiles", "fwd", "fwd+bwd", "tokens/s", "superv./s", "TFLOP"]
    rows = [[*head, "of GEMM", "of peak", "peak MiB"]]
    for name, arm in result["arms"].items():
        step, speed = arm["step_seconds"], arm["flops_per_second_and_device"]
        rows.append(
            [
                name,
                str(arm["micro_batch"]),
                _ms(step["median"]),
                f"{_ms(step['low'])}-{_ms(step['high'])}",
                _ms(arm["forward_seconds"]["median"]),
                _ms(arm["forward_backward_seconds"]["median"]),
                f"{arm['tokens_per_second']:,.0f}",
                f"{arm['supervised_tokens_per_second']:,.0f}",
                f"{arm['flops']['total'] / 1e12:.4g}",
                f"{speed / hardware['gemm_flops_per_second']:.1%}",
                f"{speed / peak:.1%}" if peak else "-",
                f"{arm['peak_bytes'] / 2**20:,.0f}",
            ]
        )
    return _aligned(rows)


def _parts(result: dict[str, Any]) -> list[str]:
    rows = [["arm", *PARTS, "sum", "corruption", "optimizer"]]
    for name, arm in result["arms"].items():
        step, phases = arm["step_seconds"]["median"], arm["phase_seconds"]
        parts = [_ms(arm["part_seconds"][part]) for part in PARTS]
        outside = [f"{phases['prepare'] / step:.2%}", f"{phases['optimizer'] / step:.2%}"]
        rows.append([name, *parts, f"{arm['parts_over_step']:.3f}", *outside])
    return _aligned(rows)


def _comparisons(result: dict[str, Any]) -> list[str]:
    rows = [["ratio of steps", "paired", "95 % interval", "medians", *PARTS, "unexpl."]]
    for pair in result["comparisons"]:
        paired, shares = pair["paired_ratio"], [f"{pair['shares'][part]:+.3f}" for part in PARTS]
        rows.append(
            [
                f"{pair['arm']} / {pair['base']}",
                f"{paired['median']:.3f}",
                f"{paired['low']:.3f}-{paired['high']:.3f}",
                f"{pair['ratio']:.3f} = 1",
                *shares,
                f"{pair['unexplained']:+.3f}",
            ]
        )
        by_flops = [f"{pair['flops_shares'].get(part, 0.0):+.3f}" for part in PARTS]
        rows.append(["  by FLOPs alone", "", "", f"{pair['flops_ratio']:.3f} = 1", *by_flops, ""])
    return _aligned(rows)


def _ratios(result: dict[str, Any]) -> list[str]:
    rows = [["ratio of steps", "paired", "95 % interval"]]
    for pair in result["comparisons"]:
        paired = pair["paired_ratio"]
        interval = f"{paired['low']:.3f}-{paired['high']:.3f}"
        rows.append([f"{pair['arm']} / {pair['base']}", f"{paired['median']:.3f}", interval])
    return _aligned(rows) if len(rows) > 1 else []


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.4g}" if seconds < 10 else f"{seconds * 1000:.0f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.rjust(width) if place else cell.ljust(width) for place, (cell, width) in cells).rstrip()
        for cells in (enumerate(zip(row, widths, strict=True)) for row in rows)
    ]


def parts_over_whole(result: dict[str, Any]) -> dict[str, float]:
    """Return every sum of parts over its measured whole, of arms and of ratios, by what it is of."""
    place = f"{result['model']} L {result['length']}"
    quotients = {}
    for measured, kind in ((result, ""), (result["best_micro_batch"], " at its largest micro-batch")):
        if measured:
            for name, arm in measured["arms"].items():
                quotients[f"{place} {name}{kind}"] = arm["parts_over_step"]
            for pair in measured["comparisons"]:
                quotients[f"{place} {pair['arm']}/{pair['base']}{kind}"] = pair["adds_up_to"]
    return quotients


def to_json(record: dict[str, Any]) -> str:
    """Return the record as indented JSON with each list of numbers on one line."""
    text = json.dumps(record, indent=1)
    return re.sub(r"\[[-+\d.eE,\s]+\]", lambda numbers: re.sub(r"\s+", " ", numbers[0]), text) + "\n"
