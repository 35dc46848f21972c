#!/usr/bin/env python3
"""Count what compiled decoder layers read and write in a training step: no timing, nearly the same on any device."""

import argparse
import sys
from pathlib import Path

from card_scale.argument_types import positive
from card_scale.cli import run_tool


def main() -> None:
    """Print one line a configuration."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Overrides are group.key=value, e.g. parallel.recompute=selective. What full recomputation runs again "
        "is not counted. Exit codes: 0 done, 2 command line, 3 configuration.",
    )
    parser.add_argument("config", help="YAML file, e.g. launchers/configs/card-1b.yaml")
    parser.add_argument("overrides", nargs="*", metavar="group.key=value")
    parser.add_argument("--rows", type=positive, metavar="N", default=2, help="samples (default: 2)")
    parser.add_argument(
        "--layers", type=positive, metavar="N", default=1, help="compiled as one graph (default: 1, as training does)"
    )
    options = parser.parse_intermixed_args()
    from card_scale import config as configs
    from card_scale import known_warnings

    config = configs.load(options.config, options.overrides)
    known_warnings.silence()
    from card_scale.benchmark.layer_traffic import UNIT, layer_traffic
    from card_scale.distributed import process_groups
    from card_scale.distributed.parallel_dims import ParallelDims

    dims = ParallelDims(1, 1, 1)
    process_groups.initialize(dims, config.run.timeout_seconds)
    found = layer_traffic(config, dims, options.rows, options.layers)
    process_groups.destroy()
    print(f"{Path(options.config).stem}, a layer's step, forward and backward, in {UNIT}:")
    print(
        f"  element-wise {found.element_wise:.1f} in {found.kernels} kernels; products and attention {found.others:.1f}"
    )


if __name__ == "__main__":
    sys.exit(run_tool(main))
