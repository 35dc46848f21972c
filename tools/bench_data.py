#!/usr/bin/env python3
"""Measure the data layer: build throughput against bare sentencepiece, loader throughput against a model's."""

import argparse
import sys
from pathlib import Path

from card_scale.argument_types import output_file, positive, positive_number
from card_scale.cli import run_tool
from card_scale.corpus.arguments import add_input_arguments, available_cores
from card_scale.files import write_json


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Exit codes: 0 done, 2 command line, 4 data, 75 stopped."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser(
        "build", help="build a dataset and encode the same text with bare sentencepiece, in turn"
    )
    add_input_arguments(build)
    build.add_argument("--tokenizer", required=True, type=Path, help="model file of tools/tokenizer.py")
    build.add_argument(
        "--workers", type=positive, default=available_cores(), help="processes and threads (default: cores)"
    )
    build.add_argument("--rounds", type=positive, default=3, help="of both (default: 3)")
    loader = commands.add_parser("loader", help="read training batches as fast as they come")
    loader.add_argument("dataset", type=Path, help="dataset directory")
    loader.add_argument("--length", type=positive, default=256, help="tokens of a sample (default: 256)")
    loader.add_argument("--global-batch", type=positive, default=64, help="samples in a batch (default: 64)")
    loader.add_argument("--steps", type=positive, default=500, help="batches read (default: 500)")
    loader.add_argument("--consumption", type=positive_number, help="tokens per second of the model to compare with")
    for command in (build, loader):
        command.add_argument(
            "--json", type=output_file, metavar="FILE", help="also write the result, with hardware and versions"
        )
    return parser.parse_args()


def main() -> None:
    """Measure, print a table, write JSON."""
    arguments = parse()
    from card_scale.benchmark import data_layer as benchmark
    from card_scale.corpus.build import BuildSettings
    from card_scale.corpus.sources import InputSettings

    build = loader = None
    if arguments.command == "build":
        settings = BuildSettings(InputSettings.from_arguments(arguments), validation_fraction=0.0)
        build = benchmark.measure_build(settings, arguments.tokenizer, arguments.workers, arguments.rounds)
    else:
        loader = benchmark.measure_loader(
            arguments.dataset, arguments.length, arguments.global_batch, arguments.steps, arguments.consumption
        )
    print(benchmark.table(build, loader))
    if arguments.json:
        write_json(arguments.json, benchmark.as_json(build, loader))


if __name__ == "__main__":
    sys.exit(run_tool(main))
