#!/usr/bin/env python3
"""Write the sources of public Python packages as a JSON Lines corpus, the same bytes on every machine.

The wheels of a list are downloaded by pip, once, and read as zip files; nothing of a package is installed or run.
"""

import argparse
import json
import sys
from pathlib import Path

from card_scale.argument_types import positive
from card_scale.cli import run_tool

PACKAGES = Path(__file__).resolve().parents[1] / "launchers/studies/python-packages.txt"


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Exit codes: 0 done, 2 command line, 4 data or download, 75 stopped, start the same command again.",
    )
    parser.add_argument("output", type=Path, help='file of {"text": ..., "path": ..., "package": ...} lines')
    parser.add_argument(
        "--packages",
        type=Path,
        default=PACKAGES,
        metavar="LIST",
        help="lines of a pip requirements file, NAME==VERSION --hash=sha256:HASH (default: "
        "launchers/studies/python-packages.txt)",
    )
    parser.add_argument(
        "--wheels", type=Path, metavar="DIRECTORY", help="where wheels are kept (default: wheels beside the output)"
    )
    parser.add_argument("--shortest", type=positive, default=200, metavar="BYTES", help="of a file (default: 200)")
    parser.add_argument(
        "--longest",
        type=positive,
        default=30_000,
        metavar="BYTES",
        help="of a file; leaves out tables and generated code, and keeps a subset of a million tokens at some hundred "
        "documents (default: 30000)",
    )
    options = parser.parse_args()
    if options.shortest > options.longest:
        parser.error(f"--shortest {options.shortest} is above --longest {options.longest}")
    if options.output.is_dir():
        parser.error(f"{options.output} is a directory, not a file")
    return options


def main() -> None:
    """Download what is missing, read, and write."""
    options = parse()
    from card_scale.corpus.input_files import describe_passed_over
    from card_scale.corpus.package_sources import download, read_list, read_sources, wheels_by_hash
    from card_scale.files import write_atomically

    wanted = read_list(options.packages)
    directory = options.wheels or options.output.parent / "wheels"
    for needed in (options.output.parent, directory):
        needed.mkdir(parents=True, exist_ok=True)
    held = wheels_by_hash(directory)
    if missing := sum(wheel.sha256 not in held for wheel in wanted):
        print(f"{missing} of {len(wanted)} wheels are not in {directory}: downloading", flush=True)
        download(options.packages, directory)
        held = wheels_by_hash(directory)
    sources = read_sources(wanted, held, shortest=options.shortest, longest=options.longest)
    lines = [json.dumps(file._asdict()) + "\n" for file in sources.files]
    write_atomically(options.output, "".join(lines).encode())
    characters = sum(len(file.text) for file in sources.files)
    packages = len({file.package for file in sources.files})
    print(f"{options.output}: {len(lines):,} files of {packages} packages, {characters:,} characters")
    if words := describe_passed_over(sources.left_out):
        print(words)


if __name__ == "__main__":
    sys.exit(run_tool(main))
