"""Command-line arguments that the data tools share; imports nothing heavy, so that ``--help`` answers at once."""

import argparse
import os

from card_scale.argument_types import positive

DEFAULT_PATTERNS = ("*.txt", "*.jsonl", "*.ndjson", "*.json", "*.csv", "*.tsv", "*.parquet", "*.arrow")


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which texts are read, see :class:`card_scale.corpus.sources.InputSettings`."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="file or directory; .jsonl, .ndjson, .json: an object a line, or an array of objects; .csv, .tsv, "
        ".parquet, .arrow: a row a document; anything else: a text file is one document; but for .parquet and .arrow "
        "also with .gz, .bz2, .xz or .zst",
    )
    parser.add_argument(
        "--glob",
        action="append",
        metavar="PATTERN",
        help="file names to take in directories, compressed or not and in any case, may be repeated (default: "
        f"{' '.join(DEFAULT_PATTERNS)})",
    )
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="paths below the directory to leave out ('*' also matches '/'), may be repeated",
    )
    parser.add_argument(
        "--hidden",
        action="store_true",
        help="in directories also take hidden and backup names, .git and __pycache__ among them (default: pass over)",
    )
    parser.add_argument("--text-key", default="text", help="JSON key or column of a table (default: text)")
    parser.add_argument(
        "--skip-invalid",
        action="store_true",
        help="leave out and count documents that are null or not valid UTF-8 (default: stop)",
    )
    parser.add_argument(
        "--split-documents",
        type=positive,
        metavar="BYTES",
        help="split documents that are longer, at the end of a paragraph, else of a line, into parts of a quarter to "
        "the whole of so many bytes (default: leave whole)",
    )


def add_workers(parser: argparse.ArgumentParser) -> None:
    """How many processes share the work."""
    parser.add_argument("--workers", type=positive, default=available_cores(), help="processes (default: all cores)")


def available_cores() -> int:
    """Cores that this process may use, which under a scheduler are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
