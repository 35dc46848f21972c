#!/usr/bin/env python3
"""Find the most layers of a configuration's widths that train on this GPU, and set the estimate beside them."""

import argparse
import json
import subprocess
import sys

from card_scale.argument_types import output_file, positive
from card_scale.cli import run_tool
from card_scale.data.tokenizer import MASK_ID
from card_scale.errors import ConfigurationError, OutOfMemory

PEAK = "peak_gib"
"""Key of what a trial prints."""

NO_MEMORY = ("out of memory", "alloc_failed")
"""Said by torch, CUDA and NCCL, and by cuBLAS."""


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Each trial is a process of its own that makes three steps on random tokens. Overrides are "
        "group.key=value, e.g. parallel.engine=fsdp2. Exit codes: 0 done, 2 command line, 3 configuration, or no GPU.",
    )
    parser.add_argument("config", help="YAML file, e.g. launchers/configs/card-3b.yaml")
    parser.add_argument("overrides", nargs="*", metavar="group.key=value")
    parser.add_argument("--vocabulary", type=positive, metavar="N", default=50_368, help="pieces (default: 50368)")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the trials and the environment")
    parser.add_argument("--trial", type=positive, metavar="LAYERS", help="make this trial alone, in this process")
    return parser.parse_intermixed_args()


def main() -> None:
    """Search by trials, or make one."""
    options = parse()
    import torch

    from card_scale import config as configs
    from card_scale import known_warnings
    from card_scale.benchmark import largest_model
    from card_scale.environment import environment
    from card_scale.files import write_json
    from card_scale.model.vocabulary import Vocabulary
    from card_scale.training.memory_fit import memory_of_a_rank

    config = configs.load(options.config, options.overrides)
    if options.trial:
        known_warnings.silence()
        try:
            peak = largest_model.step_peak_gib(largest_model.with_layers(config, options.trial), options.vocabulary)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(str(error).splitlines()[0]) from error
        print(json.dumps({PEAK: peak}))
        return
    if not torch.cuda.is_available():
        raise ConfigurationError("torch sees no GPU, whose memory this is about; card_scale.train --dry-run estimates")
    memory, rows = memory_of_a_rank(1, None), Vocabulary(options.vocabulary, MASK_ID).padded
    estimated = largest_model.most_by_estimate(config, rows, memory)
    record = {"environment": environment(), "config": options.config, "overrides": options.overrides}
    record |= {"memory_gib": memory.bytes / 2**30, "most_by_estimate": estimated, "most": 0, "trials": []}

    def fits(layers: int) -> bool:
        sizes = largest_model.Sizes.of(largest_model.with_layers(config, layers), rows, memory)
        peak = peak_of_a_trial(options, layers)
        record["trials"].append({**sizes._asdict(), "measured_gib": peak})
        measured = "does not fit" if peak is None else f"{peak:.1f} GiB"
        print(
            f"{layers} layers, {sizes.parameters / 1e9:.2f} B parameters: estimate {sizes.estimated_gib:.1f} GiB, "
            f"measured {measured}",
            flush=True,
        )
        if peak is not None:
            record["most"] = max(record["most"], layers)
        if options.json:  # after each trial, since there are minutes between them
            write_json(options.json, record)
        return peak is not None

    print(f"{memory.what}, {memory.bytes / 2**30:.1f} GiB; {estimated} layers by the estimate", flush=True)
    most = largest_model.last_that(fits, estimated)
    print(f"most layers: {most} measured, {estimated} by the estimate")


def peak_of_a_trial(options: argparse.Namespace, layers: int) -> float | None:
    """Make a trial in a process of its own; return its peak in GiB, None where memory did not do.

    Raises ConfigurationError, with its error, where it failed otherwise.
    """
    command = [sys.executable, __file__, options.config, *options.overrides]
    command += ["--vocabulary", str(options.vocabulary), "--trial", str(layers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])[PEAK]
    # Where an allocator is at its end, other libraries than torch meet it too, and each says so in its way.
    if any(sign in done.stderr.lower() for sign in NO_MEMORY):
        return None
    said = done.stderr.splitlines() or ["nothing was said"]
    # Libraries may have a word of their own to say behind it, when the process ends.
    error = next((line for line in reversed(said) if line.startswith("error: ")), said[-1])
    raise ConfigurationError(f"the trial with {layers} layers ended with code {done.returncode}: {error}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
