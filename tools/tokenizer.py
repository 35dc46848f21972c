#!/usr/bin/env python3
"""Train the sentencepiece tokenizer of a corpus: byte fallback, text kept as it is, fixed ids of control symbols."""

import argparse
import sys
import time
from pathlib import Path

from card_scale.argument_types import positive
from card_scale.cli import run_tool
from card_scale.corpus.arguments import add_input_arguments


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="PAD, UNK, BOS, EOS and [MASK] have the ids 0 to 4 and are never produced by text. OUTPUT.json records "
        "how the model was made; the same command again does nothing. Exit codes: 0 done, 2 command line, 4 data, 75 "
        "stopped.",
    )
    add_input_arguments(parser)
    parser.add_argument("--output", required=True, type=Path, help="model file to write")
    parser.add_argument("--vocabulary-size", type=positive, default=32000, help="pieces in all (default: 32000)")
    parser.add_argument(
        "--model-type",
        choices=("bpe", "unigram"),
        default="bpe",
        help="bpe trains in seconds and gives fewer tokens, unigram encodes about five times faster (default: bpe)",
    )
    parser.add_argument(
        "--sample-bytes",
        type=positive,
        default=100_000_000,
        help="text to train on, drawn from the whole corpus (default: 100000000)",
    )
    return parser.parse_args()


def main() -> None:
    """Train, or find the model there."""
    arguments = parse()
    from card_scale.corpus.input_files import describe_passed_over
    from card_scale.corpus.sources import InputSettings
    from card_scale.corpus.tokenizer_training import TokenizerSettings, make_tokenizer

    settings = TokenizerSettings(
        inputs=InputSettings.from_arguments(arguments),
        vocabulary_size=arguments.vocabulary_size,
        model_type=arguments.model_type,
        sample_bytes=arguments.sample_bytes,
    )
    begin = time.perf_counter()
    made = make_tokenizer(settings, arguments.output, progress=True)
    how = (
        f"trained in {time.perf_counter() - begin:.1f} s" if made.is_new else "already there, made from the same input"
    )
    print(f"{arguments.output}: {made.tokenizer.vocabulary_size} pieces, {how}")
    if words := describe_passed_over(made.passed_over):
        print(words)


if __name__ == "__main__":
    sys.exit(run_tool(main))
