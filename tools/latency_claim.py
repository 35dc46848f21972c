#!/usr/bin/env python3
"""Set CARD's claim, a step three times faster than block diffusion's, against operations and measurements."""

import argparse
import sys
from pathlib import Path

from card_scale.argument_types import figure_file, positive, positive_number
from card_scale.cli import run_tool


def main() -> None:
    """Print the table, and draw the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Measurements belong to the configuration with their model's name. Exit codes: 0 done, 2 command line, "
        "3 configuration, 4 results that cannot be read. How to read it: docs/latency.md",
    )
    parser.add_argument("config", nargs="+", help="YAML files, e.g. launchers/configs/card-124m.yaml")
    parser.add_argument("--results", nargs="+", type=Path, metavar="JSON", default=[], help="of bench_step_latency.py")
    shown = " ".join(map(str, lengths := [512, 1024, 2048, 4096, 8192]))
    parser.add_argument("--lengths", nargs="+", type=positive, metavar="L", default=lengths, help=f"default: {shown}")
    parser.add_argument("--block", type=positive, metavar="N", default=16, help="of block diffusion (default: 16)")
    parser.add_argument("--ratio", type=positive_number, metavar="R", default=3.0, help="looked for (default: 3)")
    parser.add_argument("--vocabulary", type=positive, metavar="N", default=50_368, help="pieces (default: 50368)")
    parser.add_argument("--plot", type=figure_file, metavar="FILE", help="draw the figure (.png, .svg, .pdf)")
    options = parser.parse_args()
    if odd := [length for length in options.lengths if length % options.block]:
        parser.error(f"--lengths {odd[0]} is not a multiple of --block {options.block}")
    if len({Path(path).stem for path in options.config}) < len(options.config):
        parser.error("two configurations have one name; results are told apart by it")
    if options.results and not options.plot:
        parser.error("--results are drawn: give --plot too")
    from card_scale import config as configs
    from card_scale.benchmark import claim
    from card_scale.benchmark.ratio_figure import read_results

    models = {Path(path).stem: configs.load(path, []).model for path in options.config}
    results = [result for path in options.results for result in read_results(path)]
    print(claim.table(models, options.lengths, options.ratio, options.block, options.vocabulary))
    if options.plot:
        claim.draw(
            models,
            options.lengths,
            results,
            options.plot,
            ratio=options.ratio,
            block=options.block,
            vocabulary_rows=options.vocabulary,
        )
        print(f"written: {options.plot}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
