"""Command-line arguments that the data tools share; imports nothing heavy, so that ``--help`` answers at once."""

import argparse
import os

DEFAULT_PATTERNS = ("*.txt", "*.jsonl", "*.jsonl.gz", "*.jsonl.zst", "*.parquet")


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which texts are read, see :class:`card_scale.corpus.sources.InputSettings`."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="file or directory; .jsonl, .jsonl.gz, .jsonl.zst: an object a line; .parquet: a row a document; "
        "anything else: a text file is one document",
    )
    parser.add_argument(
        "--glob",
        action="append",
        metavar="PATTERN",
        help=f"file names to take in directories, may be repeated (default: {' '.join(DEFAULT_PATTERNS)})",
    )
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="paths below the directory to leave out ('*' also matches '/'), may be repeated",
    )
    parser.add_argument("--text-key", default="text", help="JSON key or parquet column (default: text)")
    parser.add_argument(
        "--skip-invalid",
        action="store_true",
        help="leave out and count documents that are not valid UTF-8 (default: stop)",
    )


def available_cores() -> int:
    """Cores that this process may use, which under a scheduler are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
