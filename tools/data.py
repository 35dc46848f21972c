#!/usr/bin/env python3
"""Build, verify, decontaminate and inspect datasets: tokenised documents in webdataset tar shards with a manifest.

Tell whether a run trained on each of its samples once an epoch.
"""

import argparse
import sys
from pathlib import Path

from card_scale.argument_types import fraction, not_negative, output_file, positive, positive_share
from card_scale.cli import run_tool
from card_scale.corpus.arguments import add_input_arguments, add_workers
from card_scale.files import write_json

TOKENIZER = "model file of tools/tokenizer.py, any sentencepiece model, or a Hugging Face tokenizer.json"


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Exit codes: 0 done, 2 command line, 4 data, 75 stopped, start the same command again.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (
        _add_build,
        _add_import_megatron,
        _add_verify,
        _add_decontaminate,
        _add_report,
        _add_inspect,
        _add_ledger,
    ):
        add(commands)
    arguments = parser.parse_args()
    if arguments.command == "build" and arguments.decontaminate and not arguments.validation_fraction:
        parser.error("--decontaminate needs held-out documents, --validation-fraction above 0")
    return arguments


def _add_build(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "build",
        help="tokenise text into a dataset directory",
        description="Tokenise text into a dataset directory. Stopped or killed at any moment, the same command goes on "
        "and ends with the same bytes, whatever --workers is.",
    )
    add_input_arguments(parser)
    _add_dataset_arguments(parser, tokenizer=TOKENIZER, hashed="text")
    add_workers(parser)
    parser.add_argument("--unit-bytes", type=positive, help="input of one unit of work (default: by the corpus's size)")
    parser.add_argument(
        "--decontaminate",
        action="store_true",
        help="afterwards do what 'decontaminate' does by default (default: leave all held-out documents in)",
    )


def _add_import_megatron(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "import-megatron",
        help="make a dataset directory of Megatron's .bin and .idx files",
        description="Make a dataset directory of the tokens of Megatron's indexed datasets as they are. Their files do "
        "not name their tokenizer, so it is given; ids that it does not have are refused.",
    )
    parser.add_argument("inputs", nargs="+", type=Path, metavar="PREFIX", help="PREFIX of PREFIX.bin and PREFIX.idx")
    _add_dataset_arguments(parser, tokenizer=f"that made the tokens: {TOKENIZER}", hashed="tokens")


def _add_dataset_arguments(parser: argparse.ArgumentParser, *, tokenizer: str, hashed: str) -> None:
    """What makes a dataset: where, by which tokenizer, and how it is divided."""
    parser.add_argument("--output", required=True, type=Path, help="dataset directory")
    parser.add_argument("--tokenizer", required=True, type=Path, help=tokenizer)
    parser.add_argument(
        "--validation-fraction",
        type=fraction,
        default=0.01,
        help=f"share of documents held out, chosen by a hash of their {hashed} (default: 0.01)",
    )
    parser.add_argument("--shard-bytes", type=positive, default=1 << 29, help="largest shard (default: 536870912)")


def _add_verify(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "verify",
        help="check every byte of a dataset",
        description="Check every byte of a dataset; all problems are listed.",
    )
    parser.add_argument("dataset", type=Path, help="dataset directory")
    add_workers(parser)


def _add_decontaminate(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "decontaminate",
        help="exclude validation documents that stand in train",
        description="Find the validation documents that equal a train document but for case and white space, or share "
        "many of their token n-grams with train, and exclude them from evaluation. Train is left as it is; no shard is "
        "changed. The result replaces that of an earlier call.",
    )
    parser.add_argument("dataset", type=Path, help="dataset directory whose validation split is checked")
    parser.add_argument(
        "--against",
        type=Path,
        action="append",
        metavar="DATASET",
        help="dataset whose train split it is compared with, may be repeated (default: the dataset itself)",
    )
    parser.add_argument("--ngram", type=positive, default=13, help="tokens of an n-gram (default: 13)")
    parser.add_argument(
        "--threshold",
        type=positive_share,
        default=0.5,
        help="share of a document's n-grams in train from which it is excluded (default: 0.5)",
    )
    add_workers(parser)


def _add_report(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "report",
        help="show whether validation is clean and how much nearly repeats",
        description="Show a dataset's sizes, its decontamination, and its near-duplicate rates: the share of train "
        "documents that nearly repeat an earlier one, and of validation documents that nearly repeat one of train, by "
        "MinHash over token 5-grams.",
    )
    parser.add_argument("dataset", type=Path, help="dataset directory")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="DATASET",
        help="compare validation with this dataset's train split, and nothing else (default: its own, and train "
        "within itself)",
    )
    parser.add_argument(
        "--sample", type=positive, default=20_000, help="documents of a split asked about, at most (default: 20000)"
    )
    add_workers(parser)
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write the numbers here")


def _add_inspect(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "inspect", help="show what a dataset holds", description="Show a dataset's sizes, documents and packed samples."
    )
    parser.add_argument("dataset", type=Path, help="dataset directory")
    parser.add_argument("--split", choices=("train", "validation"), default="train", help="default: train")
    parser.add_argument("--documents", type=not_negative, default=0, metavar="N", help="show N documents")
    parser.add_argument("--samples", type=not_negative, default=0, metavar="N", help="show N packed samples")
    parser.add_argument("--first", type=not_negative, default=0, help="number of the first one shown (default: 0)")
    parser.add_argument("--characters", type=positive, default=400, help="shown of each document (default: 400)")
    parser.add_argument("--length", type=positive, default=256, help="tokens of a sample (default: 256)")
    parser.add_argument("--seed", type=not_negative, default=0, help="decides the train stream's order (default: 0)")


def _add_ledger(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "ledger",
        help="check that a run trained on every sample once an epoch",
        description="Check that a run trained on every sample of every epoch exactly once, whatever stopped it and on "
        "whatever layout it went on, by what each update recorded (run.ledger=true).",
    )
    parser.add_argument("run", type=Path, help="run directory")


def build(arguments: argparse.Namespace) -> None:
    """``data.py build``."""
    from card_scale.corpus.build import BuildSettings, build_dataset
    from card_scale.corpus.input_files import describe_passed_over
    from card_scale.corpus.sources import InputSettings
    from card_scale.corpus.summary import describe, validation_warning

    settings = BuildSettings(
        inputs=InputSettings.from_arguments(arguments),
        validation_fraction=arguments.validation_fraction,
        unit_bytes=arguments.unit_bytes,
        shard_bytes=arguments.shard_bytes,
    )
    report = build_dataset(settings, arguments.tokenizer, arguments.output, arguments.workers, progress=True)
    if not report.built:
        print(f"{arguments.output} was finished before, with the same inputs and settings")
    elif report.built < report.units:
        print(f"{report.units - report.built} of {report.units} units were finished by an earlier call")
    if arguments.decontaminate:
        from card_scale.corpus import decontamination

        settings = decontamination.DecontaminationSettings()
        output, workers = arguments.output, arguments.workers
        decontamination.decontaminate(output, [output], settings, workers, progress=True)
    print(describe(arguments.output))
    if passed_over := describe_passed_over(report.passed_over):
        print(passed_over)
    if warning := validation_warning(report.manifest):
        print(f"warning: {warning}", file=sys.stderr)


def import_megatron(arguments: argparse.Namespace) -> None:
    """``data.py import-megatron``."""
    from card_scale.corpus import megatron_dataset
    from card_scale.corpus.summary import describe

    settings = megatron_dataset.ImportSettings(
        tuple(arguments.inputs), arguments.validation_fraction, arguments.shard_bytes
    )
    _, opening = megatron_dataset.import_megatron(
        settings, arguments.tokenizer, arguments.output, progress=sys.stderr.isatty()
    )
    print(f"{describe(arguments.output)}\nthe first document begins: {opening!r}")


def verify(arguments: argparse.Namespace) -> None:
    """``data.py verify``."""
    from card_scale.corpus.verify import verify_dataset
    from card_scale.errors import DataError

    problems = verify_dataset(arguments.dataset, arguments.workers, progress=True)
    for problem in problems:
        print(problem)
    if problems:
        raise DataError(f"{arguments.dataset}: {len(problems)} problems")
    print(f"{arguments.dataset}: sound")


def decontaminate(arguments: argparse.Namespace) -> None:
    """``data.py decontaminate``."""
    from card_scale.corpus import decontamination
    from card_scale.corpus.summary import describe

    dataset = arguments.dataset
    settings = decontamination.DecontaminationSettings(arguments.ngram, arguments.threshold)
    trains = arguments.against or [dataset]
    decontamination.decontaminate(dataset, trains, settings, arguments.workers, progress=True)
    print(describe(dataset))


def report(arguments: argparse.Namespace) -> None:
    """``data.py report``."""
    from card_scale.corpus import dataset_report as dataset_report

    dataset, against = arguments.dataset, arguments.against
    found = dataset_report.report(dataset, against, arguments.sample, arguments.workers, progress=True)
    print(found.text())
    if arguments.json:
        write_json(arguments.json, found.as_json())


def inspect(arguments: argparse.Namespace) -> None:
    """``data.py inspect``."""
    from card_scale.corpus import summary

    directory, split, first = arguments.dataset, arguments.split, arguments.first
    print(summary.describe(directory))
    if arguments.documents:
        print(summary.show_documents(directory, split, first, arguments.documents, arguments.characters))
    if arguments.samples:
        print(summary.show_samples(directory, split, arguments.seed, arguments.length, first, arguments.samples))


def ledger(arguments: argparse.Namespace) -> None:
    """``data.py ledger``."""
    from card_scale.checkpoint.directory import pointed_step
    from card_scale.data.ledger import read_ledger
    from card_scale.data.ledger_check import check_ledger
    from card_scale.errors import DataError
    from card_scale.training.run_directory import RunDirectory

    run = RunDirectory(arguments.run)
    found = check_ledger(read_ledger(run.ledger), pointed_step(run.checkpoints))
    print(found.text())
    if not found.is_exact:
        raise DataError(f"{run.ledger}: not exact: {found.verdict()}")
    print(f"{run.ledger}: exact")


def main() -> None:
    """Run the command that was asked for."""
    arguments = parse()
    commands = {
        "build": build,
        "import-megatron": import_megatron,
        "verify": verify,
        "decontaminate": decontaminate,
        "report": report,
        "inspect": inspect,
        "ledger": ledger,
    }
    commands[arguments.command](arguments)


if __name__ == "__main__":
    sys.exit(run_tool(main))
